"""Train a shipped classifier: `python -m training.train --model vit-t`. Run again, it resumes.

One network has to serve every budget, so each step draws its own (`losses.py`). Patches also learn to
name the object that covers them ("All Tokens Matter: Token Labeling for Training Better Vision
Transformers"); the head for that is dropped afterwards.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from training.family import FAMILY
from training.loader import BACKGROUND, batches
from training.losses import RECIPES, normalise, run_blocks
from training.scenes import draw

OFFSETS = {"budgets": 0, "plain": 0, "sizes": 1_000_000}
"""First step of each recipe in the stream of scenes: what is tuned on was not trained on before."""


def initialise(model: nn.Module) -> None:
    """Truncated normals of 0.02, as ViTs are started."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


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


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(300, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def accuracy(model: ElasticViT, keep: float, scenes: int = 208, side: int = 224) -> float:
    """Top-1 on training-split scenes far past any that training reaches: the held-out set stays unseen."""
    reducer, right = create(f"evit:{keep}", model), 0
    for first in range(0, scenes, 52):
        drawn = [draw("train", 2**42 + first + i) for i in range(52)]
        images = torch.stack([torch.from_numpy(s.image) for s in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            pixels = normalise(images)
            if side != pixels.shape[-1]:
                pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
            out = run_blocks(model, model.embed(pixels), reducer)
            guesses = model.head(out.x[:, 0]).argmax(1)
        right += int((guesses == torch.tensor([s.objects[0].label for s in drawn])).sum())
    return right / scenes


def train(
    name: str, run: Path, steps: int, batch_size: int, lr: float, seed: int, recipe: str, start: Path | None
) -> None:
    """Run or resume; `run` holds the checkpoint and the log, one JSON object a line.

    `start` is the folder of a finished run whose weights are the first ones here.
    """
    torch.manual_seed(seed)
    model = ElasticViT(FAMILY[name].config)
    token_head = nn.Linear(model.config.width, BACKGROUND + 1)
    initialise(model)
    optims = optimisers([model, token_head], lr)
    step, seconds = 0, 0.0
    checkpoint = run / "checkpoint.pt"
    resumed = checkpoint.exists()
    found = checkpoint if resumed else start and start / "checkpoint.pt"
    if found:
        state = torch.load(found, weights_only=True)
        model.load_state_dict(state["model"])
        token_head.load_state_dict(state["token_head"])
    if resumed:
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
    run.mkdir(parents=True, exist_ok=True)
    forget_after(step, run / "log.jsonl")
    stream, started, running = batches(step + OFFSETS[recipe], batch_size), time.monotonic(), 0.0
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = learning_rate(step, steps, lr)
            optim.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = RECIPES[recipe](model, token_head, next(stream), step / steps, rng)
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
                if recipe == "sizes":
                    row["top1_size_112"] = round(accuracy(model, 1.0, side=112), 4)
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
    parser.add_argument("--recipe", choices=RECIPES, default="budgets")
    parser.add_argument("--start", type=Path, help="folder of a finished run to start from")
    args = parser.parse_args()
    run = args.run or Path("runs") / (
        args.model if args.recipe == "budgets" else f"{args.model}-{args.recipe}"
    )
    train(args.model, run, args.steps, args.batch_size, args.lr, args.seed, args.recipe, args.start)


if __name__ == "__main__":
    main()
