"""Train exit heads on a finished trunk: `python -m training.exits --model vit-t --run RUN`.

The same command resumes. After the last step, it calibrates the heads.

"LGViT: Dynamic Early Exiting for Accelerating Vision Transformer" (ACM MM 2023), the second training stage:
the trunk is frozen, and all heads learn at once from the labels and from the final classifier. Each step
draws an image size and a keep rate, so that the heads work under token reduction too.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.models.distillation.exit_heads import distillation, heads_of, new_head, run_trunk
from foveate.models.distillation.fit import learning_rate
from foveate.models.heads import ExitSpec
from foveate.models.layers.reducer import Reducer
from foveate.models.profiling.calibration import CalibrationReport, calibrate, exit_logits
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint, attach
from training.batches import SceneBatch
from training.family import FAMILY
from training.images import normalise, resized
from training.loader import batches
from training.losses import TUNED_KEEP_RATES
from training.run_files import append_row, save_atomically, truncate_log
from training.scenes import draw

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
"""The exit heads of each model. At 224 pixels, a local head of vit-t costs 7.5% of a block, a global one
4%."""
SIZES = (224, 160, 112)
OFFSET = 2_000_000
"""First step in the stream of scenes. Earlier runs did not use scenes from here on."""
CALIBRATION_START, CALIBRATION_SCENES, CHUNK = 2**42 + 10_000, 2080, 52
SAVE_EVERY = 250


def begin(name: str, run: Path) -> ElasticViT:
    """The frozen model of a finished run, with new heads."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    model = attach(FAMILY[name], state, str(run)).model.requires_grad_(False)
    for spec in EXITS[name]:
        model.exit_heads[str(spec.after)] = new_head(model, spec)
    return model


def loss_of(model: ElasticViT, images: Tensor, labels: Tensor, reducer: Reducer) -> Tensor:
    """The sum of the heads' losses, for normalised images under one reducer."""
    inputs, teacher = run_trunk(model, images, reducer)
    heads = heads_of(model)
    losses = [distillation(head(inputs[after]).float(), labels, teacher) for after, head in heads.items()]
    return torch.stack(losses).sum()


def resume(path: Path, model: ElasticViT, optim: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore heads and optimiser from the last checkpoint: its step and seconds, (0, 0) if there is none."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.exit_heads.load_state_dict(state["exits"])
    optim.load_state_dict(state["optim"])
    for head in heads_of(model).values():
        head.temperature.fill_(1)  # a finished run left it calibrated
    return state["step"], state["seconds"]


def train_step(
    model: ElasticViT, optim: torch.optim.Optimizer, batch: SceneBatch, rng: random.Random, lr: float
) -> float:
    """One step of the optimiser at this learning rate. Returns the loss."""
    optim.param_groups[0]["lr"] = lr
    optim.zero_grad(set_to_none=True)
    reducer = create(f"evit:{rng.choice(TUNED_KEEP_RATES)}", model)
    with torch.autocast("cpu", torch.bfloat16):
        images = resized(normalise(batch.images), rng.choice(SIZES))
        loss = loss_of(model, images, batch.labels, reducer)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.exit_heads.parameters(), 1.0)
    optim.step()
    return loss.item()


def train(name: str, run: Path, steps: int, batch_size: int, lr: float, seed: int) -> ElasticViT:
    """Train or resume. The run's folder gets exits.pt and exits.jsonl, one JSON object a line."""
    torch.manual_seed(seed)
    model = begin(name, run)
    optim = torch.optim.AdamW(model.exit_heads.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    path, log = run / "exits.pt", run / "exits.jsonl"
    step, seconds = resume(path, model, optim)
    truncate_log(step, log)
    stream, started, running = batches(step + OFFSET, batch_size), time.monotonic(), 0.0
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        loss = train_step(model, optim, next(stream), rng, learning_rate(step, steps, lr))
        step += 1
        running = loss if running == 0 else 0.98 * running + 0.02 * loss
        now = seconds + time.monotonic() - started
        if step % 50 == 0 or step == steps:
            append_row(log, {"step": step, "minutes": round(now / 60, 2), "loss": round(running, 4)})
        if step % SAVE_EVERY == 0 or step == steps:
            exits = model.exit_heads.state_dict()
            save_atomically(path, {"exits": exits, "optim": optim.state_dict(), "step": step, "seconds": now})
    return model


def calibrated(model: ElasticViT, scenes: int) -> dict[int, CalibrationReport]:
    """Fit the temperatures of the heads on training-split scenes that no run reaches.

    Each head gets one temperature, from full-size images with every token: exits save most on that plan.
    """
    logits: dict[int, list[Tensor]] = {}
    labels: list[int] = []
    for first in range(CALIBRATION_START, CALIBRATION_START + scenes, CHUNK):
        drawn = [
            draw("train", index) for index in range(first, min(first + CHUNK, CALIBRATION_START + scenes))
        ]
        images = torch.stack([torch.from_numpy(scene.image) for scene in drawn])
        labels += [scene.objects[0].label for scene in drawn]
        for after, part in exit_logits(model, normalise(images), create("none", model)).items():
            logits.setdefault(after, []).append(part)
    joined = {after: torch.cat(parts) for after, parts in logits.items()}
    return calibrate(model, joined, torch.tensor(labels))


def with_exits(checkpoint: Checkpoint, specs: Sequence[ExitSpec], run: Path) -> Checkpoint:
    """The checkpoint with the calibrated heads of a run."""
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
    reports = calibrated(model, args.scenes)
    state = torch.load(args.run / "exits.pt", weights_only=True)
    save_atomically(args.run / "exits.pt", state | {"exits": model.exit_heads.state_dict()})
    text = json.dumps({str(after): asdict(report) for after, report in reports.items()}, indent=2)
    (args.run / "exits.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
