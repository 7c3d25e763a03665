"""The first runs of a runner, before the first request: set-up, and the time of each rung."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foveate.core.batching import BATCH_SIZES
from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.runners.base import ModelRunner

BatchTimes = dict[int, dict[Plan, dict[int, float]]]
"""Seconds of a batch by threads, plan and batch size."""

WARMUP_LIMIT_S = 10.0
"""Seconds after which warm-up runs no further batch size. Kernels that are prepared while requests wait cost
the first burst its deadlines: a batch takes up to five times as long."""
COMPANION_WARMUP_LIMIT_S = 4.0
"""The same for models that are served beside an image classifier, so that several start soon."""
OUTLIER_FACTOR = 3.0
"""A plan that takes this many times its expected time is timed again."""
MAX_RETIMINGS = 4


def run_once(runner: ModelRunner) -> None:
    """Run one blank input. Raises SetupError if the model gives no finite answer."""
    _steady_seconds(runner, runner.blank_batch(1), runner.full)


def warm_up(runner: ModelRunner, thread_counts: Sequence[int] = (), limit_s: float = WARMUP_LIMIT_S) -> None:
    """Run every rung, so that no request pays for first-call set-up, and store the times in `runner.times`.

    Each rung is timed alone and in a batch. A CPU prepares its kernels for each batch size and each number
    of threads, so further batch sizes run until `limit_s` seconds have passed. `thread_counts`: the numbers
    of threads to try; empty: a few up to the number of cores. Raises SetupError if the model gives no
    finite answer.
    """
    plans = dict.fromkeys([runner.full, *(rung.plan for rung in runner.card.ladder)])
    cores = torch.get_num_threads()
    thread_counts = thread_counts or _default_thread_counts(runner, cores)
    times: BatchTimes = {threads: {plan: {} for plan in plans} for threads in thread_counts}
    timed_sizes = (1, min(2 if runner.card.frames else 8, runner.max_batch))
    started = time.perf_counter()
    for size in dict.fromkeys([*timed_sizes, *(size for size in BATCH_SIZES if size <= runner.max_batch)]):
        for threads in thread_counts:
            runner.use(threads)
            for plan in plans:
                if size not in timed_sizes:
                    runner.run(runner.blank_batch(size), plan)
                    continue
                seconds = _steady_seconds(runner, runner.blank_batch(size), plan)
                # The time of a plan that varies with the content says nothing on a blank image.
                if not runner.cost_varies(plan):
                    times[threads][plan][size] = seconds
        if time.perf_counter() - started > limit_s:
            break
    _retime_outliers(runner, times, timed_sizes)
    runner.use(cores)
    runner.times = times


def _default_thread_counts(runner: ModelRunner, cores: int) -> list[int]:
    if runner.device.type != "cpu":
        return [cores]
    return sorted({1, cores // 2 or 1, 3 * cores // 4 or 1, cores}, reverse=True)


def _retime_outliers(runner: ModelRunner, times: BatchTimes, sizes: Sequence[int]) -> None:
    """Time outliers again: other work on the machine may have slowed them down.

    The scheduler never chooses a plan that seems far too slow, so nothing would correct its time later.
    """
    gflops = {rung.plan: rung.gflops for rung in runner.card.ladder}
    for _ in range(MAX_RETIMINGS):
        outliers = [
            (threads, size, plan)
            for threads in times
            for size in sizes
            for plan in slow_outliers(times[threads], size, gflops)
        ]
        for threads, size, plan in outliers:
            runner.use(threads)
            seconds = _steady_seconds(runner, runner.blank_batch(size), plan)
            times[threads][plan][size] = min(seconds, times[threads][plan][size])
        if not outliers:
            break


def slow_outliers(
    times: Mapping[Plan, Mapping[int, float]], size: int, gflops: Mapping[Plan, float]
) -> list[Plan]:
    """Plans whose batches of this size took over OUTLIER_FACTOR times what the other plans imply.

    A plan should take no longer than a costlier one, and no longer than a cheaper one scaled by the ratio
    of their GFLOPs: small plans take longer for each GFLOP, never less long.
    """
    seconds = {plan: by_size[size] for plan, by_size in times.items() if size in by_size and gflops.get(plan)}

    def upper_bound(plan: Plan) -> float:
        bounds = (
            taken * max(1.0, gflops[plan] / gflops[other])
            for other, taken in seconds.items()
            if other != plan
        )
        return min(bounds, default=math.inf)

    return [plan for plan, taken in seconds.items() if taken > OUTLIER_FACTOR * upper_bound(plan)]


def _steady_seconds(runner: ModelRunner, batch: Any, plan: Plan) -> float:
    """Seconds of a batch after a first run: the lower of two, because one may be interrupted."""
    if any(isinstance(result, Exception) for result in runner.run(batch, plan)):
        raise SetupError(f"{runner.card.name} gives no finite answer, not even to a blank image")
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        runner.run(batch, plan)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
