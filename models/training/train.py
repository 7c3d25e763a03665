"""Train a shipped classifier: `python -m training.train --model vit-t`. The same command resumes.

One network serves every compute budget, so each step draws one (`losses.py`). Patches also learn to predict
the object that covers them ("All Tokens Matter: Token Labeling for Training Better Vision Transformers"). The
head for that is not shipped.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from foveate.models.distillation.fit import learning_rate
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from training.batches import BACKGROUND, SceneBatch
from training.family import FAMILY
from training.images import normalise, resized
from training.loader import batches
from training.losses import RECIPES, run_blocks
from training.optimisation import initialise, optimisers
from training.run_files import append_row, save_atomically, truncate_log
from training.scenes import draw

OFFSETS = {"budgets": 0, "plain": 0, "sizes": 1_000_000}
"""First step of each recipe in the stream of scenes: `sizes` tunes on scenes that are new to the model."""


@torch.inference_mode()
def accuracy(model: ElasticViT, keep: float, scenes: int = 208, side: int = 224) -> float:
    """Top-1 on training-split scenes that no run reaches. The held-out set is not used during training."""
    reducer, correct = create(f"evit:{keep}", model), 0
    for first in range(0, scenes, 52):
        drawn = [draw("train", 2**42 + first + i) for i in range(52)]
        images = torch.stack([torch.from_numpy(s.image) for s in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            pixels = resized(normalise(images), side)
            out = run_blocks(model, model.embed(pixels), reducer)
            predicted = model.head(out.x[:, 0]).argmax(1)
        correct += int((predicted == torch.tensor([s.objects[0].label for s in drawn])).sum())
    return correct / scenes


@dataclass(frozen=True, slots=True)
class TrunkTrainingRun:
    """A training run of a classifier."""

    model: str
    folder: Path
    steps: int
    batch_size: int
    lr: float
    """The peak learning rate."""
    seed: int
    recipe: str
    """One of RECIPES."""
    start: Path | None
    """Folder of a finished run whose weights are the initial ones; None: random weights."""


@dataclass(slots=True)
class TrunkTrainingState:
    """What a checkpoint holds."""

    model: ElasticViT
    token_head: nn.Linear
    optims: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path, seconds: float) -> None:
        """Write a checkpoint; `seconds` of training so far."""
        state = {
            "model": self.model.state_dict(), "token_head": self.token_head.state_dict(),
            "optims": [o.state_dict() for o in self.optims], "step": self.step, "seconds": seconds,
        }  # fmt: skip
        save_atomically(path, state)


def begin(run: TrunkTrainingRun) -> TrunkTrainingState:
    """New weights, those of the run to start from, or the last checkpoint of this run."""
    torch.manual_seed(run.seed)
    model = ElasticViT(FAMILY[run.model].config)
    token_head = nn.Linear(model.config.width, BACKGROUND + 1)
    initialise(model)
    state = TrunkTrainingState(model, token_head, optimisers([model, token_head], run.lr))
    checkpoint = run.folder / "checkpoint.pt"
    resumed = checkpoint.exists()
    source = checkpoint if resumed else run.start and run.start / "checkpoint.pt"
    if source:
        saved = torch.load(source, weights_only=True)
        model.load_state_dict(saved["model"])
        token_head.load_state_dict(saved["token_head"])
    if resumed:
        for optim, saved_optim in zip(state.optims, saved["optims"], strict=True):
            optim.load_state_dict(saved_optim)
        state.step, state.seconds = saved["step"], saved["seconds"]
    return state


def train_step(run: TrunkTrainingRun, state: TrunkTrainingState, batch: SceneBatch) -> float:
    """One step of the optimisers. Returns the loss."""
    rng = random.Random(run.seed * 1_000_003 + state.step)
    torch.manual_seed(run.seed * 1_000_003 + state.step)
    for optim in state.optims:
        for group in optim.param_groups:
            group["lr"] = learning_rate(state.step, run.steps, run.lr)
        optim.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = RECIPES[run.recipe](state.model, state.token_head, batch, state.step / run.steps, rng)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([*state.model.parameters(), *state.token_head.parameters()], 1.0)
    for optim in state.optims:
        optim.step()
    return loss.item()


def train(run: TrunkTrainingRun) -> None:
    """Train or resume. The run's folder gets checkpoint.pt and log.jsonl, one JSON object a line."""
    state = begin(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "log.jsonl"
    truncate_log(state.step, log)
    stream = batches(state.step + OFFSETS[run.recipe], run.batch_size)
    started, running = time.monotonic(), 0.0
    while state.step < run.steps:
        loss = train_step(run, state, next(stream))
        state.step += 1
        running = loss if running == 0 else 0.98 * running + 0.02 * loss
        if state.step % 50:
            continue
        now = state.seconds + time.monotonic() - started
        row: dict[str, float] = {"step": state.step, "minutes": round(now / 60, 2), "loss": round(running, 4)}
        if state.step % 500 == 0 or state.step == run.steps:
            row |= {f"top1_keep_{k}": round(accuracy(state.model, k), 4) for k in (1.0, 0.5)}
            if run.recipe == "sizes":
                row["top1_size_112"] = round(accuracy(state.model, 1.0, side=112), 4)
            state.save(run.folder / "checkpoint.pt", now)
        append_row(log, row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=FAMILY, default="vit-t")
    parser.add_argument("--run", type=Path, help="folder of the run; default: runs/MODEL")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=RECIPES, default="budgets")
    parser.add_argument("--start", type=Path, help="folder of a finished run to start from")
    args = parser.parse_args()
    name = args.model if args.recipe == "budgets" else f"{args.model}-{args.recipe}"
    folder = args.run or Path("runs") / name
    train(
        TrunkTrainingRun(
            args.model, folder, args.steps, args.batch_size, args.lr, args.seed, args.recipe, args.start
        )
    )


if __name__ == "__main__":
    main()
