"""How long a runner takes over pictures."""

import time
from collections.abc import Mapping, Sequence

from foveate.core.plan import Plan
from foveate.models.runners.base import ModelRunner, Pixels

Times = Mapping[str, Mapping[int, float]]
"""Seconds a batch by plan and batch size."""

FAILED = -1
"""Stands for a class where a plan gave no finite answer."""


def seconds_each(runner: ModelRunner, plan: Plan, pixels: Sequence[Pixels], size: int) -> float:
    """Mean seconds of a batch of this size, over as many whole ones as the pictures make.

    One batch goes before, off the clock. oneDNN holds a thousand kernels for shapes it has met; a
    few dozen plans have more, so that each would pay for what those in between have driven out.
    """
    starts = range(0, len(pixels) - size + 1, size)
    batches = [runner.stack(pixels[start : start + size], plan) for start in starts]
    runner.run(batches[0], plan)
    started = time.perf_counter()
    for batch in batches:
        runner.run(batch, plan)  # gives NumPy arrays, so the device has finished
    return (time.perf_counter() - started) / len(batches)
