"""Train a shipped classifier: `python -m training.train --model vit-t`. Run again, it resumes.

One network has to serve every budget, so each step draws its own: either a random subset of patches
goes in at all (cheap, most of the early steps), or EViT reduces at a random keep rate. Patches also
learn to name the object that covers them ("All Tokens Matter: Token Labeling for Training Better
Vision Transformers"); the head for that is dropped afterwards.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.reduction import Reducer, create
from foveate.models.tokens import Assignment, Tokens
from foveate.models.vit import ElasticViT
from training.family import FAMILY, MEAN, STD
from training.loader import BACKGROUND, IGNORE, Batch, batches
from training.scenes import draw

KEEP_RATES = (1.0, 0.9, 0.7, 0.5, 0.3)
INPUT_PATCHES = (49, 49, 64, 98)


def initialise(model: nn.Module) -> None:
    """Truncated normals of 0.02, as ViTs are started."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in -1..1."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def keep_some(tokens: Tokens, labels: Tensor, count: int) -> tuple[Tokens, Tensor]:
    """A random subset of `count` patches that favours the object, and their labels.

    Favouring it keeps the loss meaningful at a quarter of the tokens, where chance alone would
    often leave a small object out of the picture.
    """
    priority = torch.rand(labels.shape) + 0.55 * (labels != BACKGROUND)
    chosen = priority.topk(count, dim=1).indices
    prefix = torch.arange(tokens.prefix).expand(len(labels), -1)
    kept = torch.cat([prefix, chosen + tokens.prefix], dim=1)
    return tokens.apply(Assignment(kept)), labels.gather(1, chosen)


def run_blocks(model: ElasticViT, tokens: Tokens, reducer: Reducer) -> Tokens:
    """The trunk without its head: the losses look at every token."""
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    return tokens.with_features(model.norm(tokens.x))


def token_targets(tokens: Tokens, labels: Tensor) -> Tensor:
    """Labels (B, P) moved onto the tokens that are left: (B, N), IGNORE for prefix and fused tokens."""
    target = torch.full(tokens.counts.shape, IGNORE)
    target = target.scatter(1, tokens.source.clamp(min=0), labels)
    target[:, : tokens.prefix] = IGNORE
    return target.masked_fill(tokens.counts != 1, IGNORE)


def losses(
    model: ElasticViT, token_head: nn.Linear, batch: Batch, progress: float, rng: random.Random
) -> Tensor:
    """Classification and token-labelling loss of one step at a randomly drawn budget."""
    tokens, labels = model.embed(normalise(batch.images)), batch.patch_labels
    subset = rng.random() < min(0.9, max(0.0, (0.8 - progress) / 0.25))
    if subset:
        tokens, labels = keep_some(tokens, labels, rng.choice(INPUT_PATCHES))
        start = Tokens.start(tokens.x, tokens.prefix)
        reducer = create("none", model.geometry)
    else:
        start, reducer = tokens, create(f"evit:{rng.choice(KEEP_RATES)}", model.geometry)
    out = run_blocks(model, start, reducer)
    logits = model.head(out.x[:, 0]).float()
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    targets = token_targets(out, labels)
    token_logits = token_head(out.x).float().flatten(0, 1)
    balance = torch.ones(BACKGROUND + 1)
    balance[BACKGROUND] = 0.2
    return loss + F.cross_entropy(token_logits, targets.flatten(), balance, ignore_index=IGNORE)


def optimisers(modules: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else (embeddings, heads, gains, biases)."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            inside = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def accuracy(model: ElasticViT, keep: float, scenes: int = 208) -> float:
    """Top-1 on training-split scenes far past any that training reaches: the held-out set stays unseen."""
    reducer, right = create(f"evit:{keep}", model.geometry), 0
    for first in range(0, scenes, 52):
        drawn = [draw("train", 2**42 + first + i) for i in range(52)]
        images = torch.stack([torch.from_numpy(s.image) for s in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            out = run_blocks(model, model.embed(normalise(images)), reducer)
            guesses = model.head(out.x[:, 0]).argmax(1)
        right += int((guesses == torch.tensor([s.objects[0].label for s in drawn])).sum())
    return right / scenes


def train(name: str, run: Path, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Run or resume; `run` holds the checkpoint and the log, one JSON object a line."""
    torch.manual_seed(seed)
    model = ElasticViT(FAMILY[name].geometry)
    token_head = nn.Linear(model.geometry.width, BACKGROUND + 1)
    initialise(model)
    optims = optimisers([model, token_head], lr)
    step, seconds = 0, 0.0
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        token_head.load_state_dict(state["token_head"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
    run.mkdir(parents=True, exist_ok=True)
    forget_after(step, run / "log.jsonl")
    stream, started, running = batches(step, batch_size), time.monotonic(), 0.0
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = learning_rate(step, steps, lr)
            optim.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(model, token_head, next(stream), step / steps, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*model.parameters(), *token_head.parameters()], 1.0)
        for optim in optims:
            optim.step()
        step += 1
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            now = seconds + time.monotonic() - started
            row: dict[str, float] = {"step": step, "minutes": round(now / 60, 2), "loss": round(running, 4)}
            if step % 500 == 0 or step == steps:
                row |= {f"top1_keep_{k}": round(accuracy(model, k), 4) for k in (1.0, 0.5)}
                _save(checkpoint, {
                    "model": model.state_dict(), "token_head": token_head.state_dict(),
                    "optims": [o.state_dict() for o in optims], "step": step, "seconds": now,
                })  # fmt: skip
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)


def forget_after(step: int, log: Path) -> None:
    """Take out of the log what an interrupted run did after its last checkpoint: it will be done again."""
    if log.exists():
        rows = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{row}\n" for row in rows))


def _save(path: Path, state: object) -> None:
    """Write beside and rename, so that an interruption never leaves half a checkpoint."""
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=FAMILY, default="vit-t")
    parser.add_argument("--run", type=Path, help="folder of the run; runs/MODEL unless told")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.model, args.run or Path("runs") / args.model, args.steps, args.batch_size, args.lr, args.seed)


if __name__ == "__main__":
    main()
