"""Train a head on a frozen trunk: the loop with checks, a log, checkpoints and resuming."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.models.distillation.fit import learning_rate
from training.run_files import append_row, save_atomically, truncate_log

LOG_EVERY, CHECK_EVERY = 50, 250


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run with its files FOLDER/NAME.pt and FOLDER/NAME.jsonl, and its hyperparameters."""

    folder: Path
    name: str
    steps: int
    lr: float
    """The peak learning rate."""
    seed: int = 0
    decay: float = 0.01
    """The weight decay."""
    half: bool = True
    """Whether autocast computes in bfloat16."""
    check_every: int = CHECK_EVERY
    """Steps between checks, each with a checkpoint."""


def fit(
    run: TrainingRun,
    head: nn.Module,
    loss_at: Callable[[int, random.Random], Tensor],
    checks: Callable[[], dict[str, float]],
    optimisers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Train a head. A run that was interrupted resumes after its last check.

    optimisers: those of the head's parameters; by default, one AdamW for all.

    `loss_at` gives the loss of a step under autocast, with the randomness to use; `checks` gives the figures
    to log every `check_every` steps, with the head in eval mode. Raises RuntimeError if the loss is not
    finite.
    """
    optims = optimisers or [
        torch.optim.AdamW(head.parameters(), lr=run.lr, weight_decay=run.decay, betas=(0.9, 0.98))
    ]
    path, log = run.folder / f"{run.name}.pt", run.folder / f"{run.name}.jsonl"
    step, seconds = restore(path, head, optims)
    run.folder.mkdir(parents=True, exist_ok=True)
    truncate_log(step, log)
    started, running = time.monotonic(), 0.0
    while step < run.steps:
        loss = _train_step(run, head, optims, loss_at, step)
        step += 1
        running = loss if running == 0 else 0.98 * running + 0.02 * loss
        if not math.isfinite(running):
            raise RuntimeError(f"the loss is {running} at step {step}")
        if step % LOG_EVERY and step < run.steps:
            continue
        now = seconds + time.monotonic() - started
        row: dict[str, float] = {"step": step, "minutes": round(now / 60, 2), "loss": round(running, 4)}
        if step % run.check_every == 0 or step == run.steps:
            head.eval()
            row |= {name: round(value, 4) for name, value in checks().items()}
            head.train()
            state = {
                "head": head.state_dict(),
                "optims": [optim.state_dict() for optim in optims],
                "step": step,
                "seconds": now,
            }
            save_atomically(path, state)
        append_row(log, row)


def _train_step(
    run: TrainingRun,
    head: nn.Module,
    optims: Sequence[torch.optim.Optimizer],
    loss_at: Callable[[int, random.Random], Tensor],
    step: int,
) -> float:
    """One step of the optimiser. Returns the loss."""
    torch.manual_seed(run.seed * 1_000_003 + step)
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = learning_rate(step, run.steps, run.lr) * group.get("lr_scale", 1.0)
        optim.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, run.half):
        loss = loss_at(step, random.Random(run.seed * 1_000_003 + step))
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    for optim in optims:
        optim.step()
    return loss.item()


def restore(path: Path, head: nn.Module, optims: Sequence[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load the last checkpoint of a run: its step and seconds; (0, 0) if there is none."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    head.load_state_dict(state["head"])
    for optim, saved in zip(optims, state["optims"], strict=True):
        optim.load_state_dict(saved)
    return state["step"], state["seconds"]
