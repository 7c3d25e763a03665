"""Time a runner on batches of images or videos."""

import time
from collections.abc import Mapping, Sequence

from foveate.core.plan import Plan
from foveate.models.runners.base import ModelRunner, Pixels

RoundTimes = Mapping[str, Mapping[int, float]]
"""Seconds of a batch by plan and batch size, in one round."""

FAILED = -1
"""Stands for a class index if a plan gave no finite answer."""


def mean_batch_seconds(runner: ModelRunner, plan: Plan, pixels: Sequence[Pixels], size: int) -> float:
    """Mean seconds of a batch of this size, over the whole batches that these inputs make.

    One batch runs first, untimed: oneDNN caches a limited number of kernels by shape, and the kernels of
    the plans that ran before may have evicted those of this plan.
    """
    starts = range(0, len(pixels) - size + 1, size)
    batches = [runner.stack(pixels[start : start + size], plan) for start in starts]
    runner.run(batches[0], plan)
    started = time.perf_counter()
    for batch in batches:
        runner.run(batch, plan)  # gives NumPy arrays, so the device has finished
    return (time.perf_counter() - started) / len(batches)
