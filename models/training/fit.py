"""The loop in which a head is trained on a frozen trunk: it checks, logs, saves, and resumes."""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.train import forget_after, learning_rate

LOG_EVERY, CHECK_EVERY = 50, 250


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run is kept, as FOLDER/NAME.pt and FOLDER/NAME.jsonl, and how it goes."""

    folder: Path
    name: str
    steps: int
    lr: float
    seed: int = 0
    decay: float = 0.01
    half: bool = True
    """Computes in bfloat16 where autocast does."""


def fit(
    run: Run,
    head: nn.Module,
    loss_at: Callable[[int, random.Random], Tensor],
    checks: Callable[[], dict[str, float]],
) -> None:
    """`loss_at`: the loss of a step under autocast, whose randomness is given; `checks`: what the log tells
    every CHECK_EVERY steps, with the head in eval mode. Run again, it goes on after the last of these."""
    optim = torch.optim.AdamW(head.parameters(), lr=run.lr, weight_decay=run.decay, betas=(0.9, 0.98))
    path, log = run.folder / f"{run.name}.pt", run.folder / f"{run.name}.jsonl"
    step, seconds = restored(path, head, optim)
    run.folder.mkdir(parents=True, exist_ok=True)
    forget_after(step, log)
    started, running = time.monotonic(), 0.0
    while step < run.steps:
        torch.manual_seed(run.seed * 1_000_003 + step)
        optim.param_groups[0]["lr"] = learning_rate(step, run.steps, run.lr)
        optim.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, run.half):
            loss = loss_at(step, random.Random(run.seed * 1_000_003 + step))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optim.step()
        step += 1
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        if not math.isfinite(running):
            raise RuntimeError(f"the loss is {running} at step {step}")
        if step % LOG_EVERY and step < run.steps:
            continue
        now = seconds + time.monotonic() - started
        row: dict[str, float] = {"step": step, "minutes": round(now / 60, 2), "loss": round(running, 4)}
        if step % CHECK_EVERY == 0 or step == run.steps:
            head.eval()
            row |= {name: round(value, 4) for name, value in checks().items()}
            head.train()
            save(path, {"head": head.state_dict(), "optim": optim.state_dict(), "step": step, "seconds": now})
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def restored(path: Path, head: nn.Module, optim: torch.optim.Optimizer) -> tuple[int, float]:
    """The step and the seconds after which the run was last saved; the beginning where it never was."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    head.load_state_dict(state["head"])
    optim.load_state_dict(state["optim"])
    return state["step"], state["seconds"]


def save(path: Path, state: dict[str, object]) -> None:
    """Written beside and renamed: whoever reads never finds half a file."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
