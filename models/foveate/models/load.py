"""From a model's name to a warm runner: what `serve` and `predict` call."""

import os

import torch

from foveate.core.errors import SetupError
from foveate.core.plan import Precision
from foveate.models import hub, precision
from foveate.models.runner import TorchRunner


def load(
    name: str, wanted: Precision | None = None, device: str = "auto", threads: int = 0, max_batch: int = 0
) -> TorchRunner:
    """A runner that has run once. `wanted` None: the fastest precision that keeps the answers."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise SetupError(f"torch has no device {device!r} on this machine") from None
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    checkpoint = hub.load(name)
    chosen = wanted or precision.choose(checkpoint, device)
    runner = TorchRunner(checkpoint, chosen, device, max_batch)
    warm(runner)
    return runner


def warm(runner: TorchRunner) -> None:
    """Run batches of one and of the largest size, so that no request pays for first-call set-up.

    Raises SetupError for a model that cannot answer.
    """
    side = runner.full.image_size
    blank = torch.zeros(side, side, 3, dtype=torch.uint8).numpy()
    for size in (1, runner.max_batch):
        results = runner.run(runner.stack([blank] * size, runner.full), runner.full)
        if any(isinstance(result, Exception) for result in results):
            raise SetupError(f"{runner.card.name} gives no finite answer, not even to a blank picture")
