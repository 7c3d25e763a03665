"""How long a runner takes over pictures."""

import time
from collections.abc import Sequence

from foveate.core.plan import Plan
from foveate.models.runner import Pixels, TorchRunner


def seconds_each(runner: TorchRunner, plan: Plan, pixels: Sequence[Pixels], size: int) -> float:
    """Mean seconds of a batch of this size, over as many whole ones as the pictures make."""
    starts = range(0, len(pixels) - size + 1, size)
    batches = [runner.stack(pixels[start : start + size], plan) for start in starts]
    started = time.perf_counter()
    for batch in batches:
        runner.run(batch, plan)  # gives NumPy arrays, so the device has finished
    return (time.perf_counter() - started) / len(batches)
