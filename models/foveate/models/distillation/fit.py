"""The training loop of one part, with a time budget and a checkpoint from which it resumes."""

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import SetupError

SAVE_INTERVAL_S = 20.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True, slots=True)
class FitProgress:
    """The state of the training of one part."""

    step: int
    share: float
    """Share of the training that is done, 0 to 1."""
    loss: float
    """Running mean."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How one part is trained."""

    steps: int
    """Most steps."""
    budget_s: float
    """Most seconds, over all attempts."""
    lr: float
    """The peak learning rate."""
    seed: int = 0


class TrainingCheckpoint:
    """The file that holds an unfinished training: the weights, optimiser and step of each part."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        """identity: what the training depends on. The state of another training is not used."""
        self.path, self.parts, self.resumed = path, dict[str, Any](), False
        self._identity = dict(identity)
        try:
            state = torch.load(path, weights_only=True)
            if state["identity"] == self._identity:
                self.parts, self.resumed = state["parts"], True
        except FileNotFoundError:
            pass
        except Exception:  # torch raises many types for damaged files; the training then starts anew
            self.parts = {}

    def save(self, name: str, part: Mapping[str, Any]) -> None:
        """Write the state of one part, by renaming. Raises SetupError if the file cannot be written."""
        self.parts[name] = dict(part)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"identity": self._identity, "parts": self.parts}, temporary)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a missing folder
            raise SetupError(f"cannot write {self.path}: {error}") from None


def fit(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int, random.Random], Tensor],
    settings: FitSettings,
    checkpoint: TrainingCheckpoint,
    report: Callable[[FitProgress], None],
) -> None:
    """Train the parameters of a module until its steps or its time are over.

    `loss_at` gives the loss of a step, with the randomness to use. A training that was interrupted resumes
    after its last checkpoint. Raises SetupError if the loss is not finite.
    """
    optim = torch.optim.AdamW(module.parameters(), lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.98))
    state = checkpoint.parts.get(name)
    step, before, running = 0, 0.0, 0.0
    if state is not None:
        module.load_state_dict(state["module"])
        optim.load_state_dict(state["optim"])
        step, before, running = state["step"], state["seconds"], state["loss"]
    started = saved = time.monotonic()

    def share() -> float:
        spent = before + time.monotonic() - started
        return max(step / settings.steps, spent / settings.budget_s)

    def save() -> None:
        seconds = before + time.monotonic() - started
        part = {"module": module.state_dict(), "optim": optim.state_dict(), "step": step}
        checkpoint.save(name, part | {"seconds": seconds, "loss": running})

    while (done := share()) < 1:
        loss = _train_step(module, optim, loss_at, settings, step, done)
        step += 1
        running = loss if running == 0 else 0.95 * running + 0.05 * loss
        if not math.isfinite(running):
            raise SetupError(f"the loss of the {name} is {running} at step {step}")
        report(FitProgress(step, min(1.0, share()), running))
        if time.monotonic() - saved > SAVE_INTERVAL_S:
            save()
            saved = time.monotonic()
    save()


def _train_step(
    module: nn.Module,
    optim: torch.optim.Optimizer,
    loss_at: Callable[[int, random.Random], Tensor],
    settings: FitSettings,
    step: int,
    share: float,
) -> float:
    """One step of the optimiser; the share of the training decides the learning rate. Returns the loss."""
    torch.manual_seed(settings.seed * 1_000_003 + step)
    optim.param_groups[0]["lr"] = learning_rate(int(share * settings.steps), settings.steps, settings.lr)
    optim.zero_grad(set_to_none=True)
    loss = loss_at(step, random.Random(settings.seed * 1_000_003 + step))  # noqa: S311 -- not a secret
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optim.step()
    return loss.item()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up to the peak, then a cosine to zero."""
    warmup = min(300, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
