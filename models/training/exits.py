"""Train exit heads on a finished trunk: `python -m training.exits --model vit-t --run RUN`. Run again, it
resumes; once all steps are done, it calibrates the heads.

"LGViT: Dynamic Early Exiting for Accelerating Vision Transformer" (ACM MM 2023), the second training
stage: the trunk is frozen, and all heads learn at once from the labels and from its final classifier.
Each step draws an image size and a keep rate, so that the heads also answer under reduction.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads import ExitSpec
from foveate.models.heads.exits import ExitHead, build
from foveate.models.layers.reducer import Reducer
from foveate.models.layers.tokens import Tokens
from foveate.models.profiling.calibration import Calibrated, answers, calibrate
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint, attach
from training.family import FAMILY
from training.loader import batches
from training.losses import TUNED_KEEP_RATES, normalise
from training.scenes import draw
from training.train import forget_after, learning_rate

EXITS = {
    "vit-t": (
        ExitSpec(4, "local", 3),
        ExitSpec(5, "local", 3),
        ExitSpec(6, "local", 3),
        ExitSpec(8, "global", 2),
        ExitSpec(10, "global", 2),
    ),
    "vit-xs": (ExitSpec(3, "local", 3), ExitSpec(4, "local", 3), ExitSpec(6, "global", 2)),
}
"""At 224 pixels a local head of vit-t costs 7.5% of a block and a global one 4%."""
SIZES = (224, 160, 112)
SOFTENING, TAUGHT = 2.0, 0.5
"""Temperature of the distillation, and its share of the loss."""
OFFSET = 2_000_000
"""First step in the stream of scenes: none of these were trained on before."""
CALIBRATION_START, CALIBRATION_SCENES, CHUNK = 2**42 + 10_000, 2080, 52
SAVE_EVERY = 250


def heads_of(model: ElasticViT) -> dict[int, ExitHead]:
    """The exit heads by the number of blocks before them."""
    return {int(after): cast("ExitHead", head) for after, head in model.exit_heads.items()}


def begin(name: str, run: Path) -> ElasticViT:
    """A finished run's model, frozen, with new heads.

    Their classifiers start as the trunk's own, which already names much of what late blocks hold.
    """
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    model = attach(FAMILY[name], state, str(run)).model.requires_grad_(False)
    for spec in EXITS[name]:
        head = build(model.config, spec)
        head.final_norm.load_state_dict(model.norm.state_dict())
        head.head.load_state_dict(model.head.state_dict())
        model.exit_heads[str(spec.after)] = head.eval()
    return model


def resized(images: Tensor, side: int) -> Tensor:
    """(B, H, W, 3) uint8 to normalised (B, 3, side, side)."""
    pixels = normalise(images)
    if side == pixels.shape[-1]:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)


@torch.no_grad()
def run_trunk(model: ElasticViT, images: Tensor, reducer: Reducer) -> tuple[dict[int, Tokens], Tensor]:
    """The tokens each head sees, and the final classifier's logits (B, C)."""
    tokens, seen = model.embed(images), {}
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        if str(index + 1) in model.exit_heads:
            seen[index + 1] = tokens
    return seen, model.classify(tokens).float()


def distillation(logits: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
    """One head's loss (1 - a) CE(logits, labels) + a T^2 KL(teacher / T || logits / T): the paper's
    prediction distillation. logits, teacher: (B, C).

    Its feature distillation, of a head's map of patches towards the last block's, is left out: taken of
    the pooled vectors that are all there is here, no head did better for it in a trial of 150 steps.
    """
    hard = F.cross_entropy(logits, labels)
    soft = F.kl_div(
        (logits / SOFTENING).log_softmax(1),
        (teacher / SOFTENING).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - TAUGHT) * hard + TAUGHT * SOFTENING**2 * soft


def loss_of(model: ElasticViT, images: Tensor, labels: Tensor, reducer: Reducer) -> Tensor:
    """The heads' losses summed, for normalised images under one plan."""
    seen, teacher = run_trunk(model, images, reducer)
    heads = heads_of(model)
    losses = [distillation(head(seen[after]).float(), labels, teacher) for after, head in heads.items()]
    return torch.stack(losses).sum()


def save(path: Path, state: object) -> None:
    """Write beside and rename, so that an interruption never leaves half a checkpoint."""
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    beside.replace(path)


def resume(path: Path, model: ElasticViT, optim: torch.optim.Optimizer) -> tuple[int, float]:
    """Steps done and seconds spent so far, heads and optimiser as they were then."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.exit_heads.load_state_dict(state["exits"])
    optim.load_state_dict(state["optim"])
    for head in heads_of(model).values():
        head.temperature.fill_(1)  # heads learn uncalibrated
    return state["step"], state["seconds"]


def train(name: str, run: Path, steps: int, batch_size: int, lr: float, seed: int) -> ElasticViT:
    """Run or resume; `run` gains exits.pt and exits.jsonl, one JSON object a line. Returns the model."""
    torch.manual_seed(seed)
    model = begin(name, run)
    optim = torch.optim.AdamW(model.exit_heads.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    path, log = run / "exits.pt", run / "exits.jsonl"
    step, seconds = resume(path, model, optim)
    forget_after(step, log)
    stream, started, running = batches(step + OFFSET, batch_size), time.monotonic(), 0.0
    while step < steps:
        rng, batch = random.Random(seed * 1_000_003 + step), next(stream)
        optim.param_groups[0]["lr"] = learning_rate(step, steps, lr)
        optim.zero_grad(set_to_none=True)
        reducer = create(f"evit:{rng.choice(TUNED_KEEP_RATES)}", model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, resized(batch.images, rng.choice(SIZES)), batch.labels, reducer)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.exit_heads.parameters(), 1.0)
        optim.step()
        step += 1
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        now = seconds + time.monotonic() - started
        if step % 50 == 0 or step == steps:
            row = {"step": step, "minutes": round(now / 60, 2), "loss": round(running, 4)}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if step % SAVE_EVERY == 0 or step == steps:
            exits = model.exit_heads.state_dict()
            save(path, {"exits": exits, "optim": optim.state_dict(), "step": step, "seconds": now})
    return model


def calibrated(model: ElasticViT, scenes: int) -> dict[int, Calibrated]:
    """Fit the heads' temperatures on training-split scenes far past any that training reaches.

    One temperature a head, from full-size pictures with every token: the plan that exits save most on.
    """
    said: dict[int, list[Tensor]] = {}
    labels: list[int] = []
    for first in range(CALIBRATION_START, CALIBRATION_START + scenes, CHUNK):
        drawn = [
            draw("train", index) for index in range(first, min(first + CHUNK, CALIBRATION_START + scenes))
        ]
        images = torch.stack([torch.from_numpy(scene.image) for scene in drawn])
        labels += [scene.objects[0].label for scene in drawn]
        for after, logits in answers(model, normalise(images), create("none", model)).items():
            said.setdefault(after, []).append(logits)
    return calibrate(model, {after: torch.cat(parts) for after, parts in said.items()}, torch.tensor(labels))


def with_exits(checkpoint: Checkpoint, specs: Sequence[ExitSpec], run: Path) -> Checkpoint:
    """The checkpoint with the heads that a run trained and calibrated."""
    heads = torch.load(run / "exits.pt", weights_only=True)["exits"]
    state = checkpoint.model.state_dict() | {f"exit_heads.{key}": value for key, value in heads.items()}
    return attach(replace(checkpoint, exits=tuple(specs)), state, str(run))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=EXITS, default="vit-t")
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished run")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=CALIBRATION_SCENES, help="scenes to calibrate on")
    args = parser.parse_args()
    model = train(args.model, args.run, args.steps, args.batch_size, args.lr, args.seed)
    found = calibrated(model, args.scenes)
    state = torch.load(args.run / "exits.pt", weights_only=True)
    save(args.run / "exits.pt", state | {"exits": model.exit_heads.state_dict()})
    report = {str(after): asdict(head) for after, head in found.items()}
    (args.run / "exits.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
