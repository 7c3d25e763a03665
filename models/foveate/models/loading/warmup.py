"""A runner's first runs, before anybody waits for one."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foveate.core.batching import BATCH_SIZES
from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.runners.base import ModelRunner

Times = dict[int, dict[Plan, dict[int, float]]]
"""Seconds of a batch by threads, plan and size."""

WARM_S = 10.0
"""Seconds after which no further size of batch is run at the start. Kernels that are made while requests wait
cost the first burst its deadlines: a batch takes up to five times as long."""
ODD, ANEW = 3.0, 4
"""What took so many times as long as it can have is timed again, so many times at most."""
BESIDE_S = 4.0
"""The same for what is served beside the models that name pictures, so that several of them start soon."""


def wake(runner: ModelRunner) -> None:
    """Run one blank picture. Raises SetupError for a model that cannot answer."""
    _later_run(runner, runner.blank_batch(1), runner.full)


def warm(runner: ModelRunner, lanes: Sequence[int] = (), patience_s: float = WARM_S) -> None:
    """Run every rung, so that no request pays for first-call set-up, and time it alone and in a batch: the
    runner's `times` then tell what batches take on this machine now.

    A CPU's kernels are made for each size of batch and each number of threads: those sizes that batches
    come in are run while that takes less than `patience_s`. Raises SetupError for a model that cannot answer.
    lanes: numbers of threads to try; unless told, those that the machine suggests.
    """
    plans = dict.fromkeys([runner.full, *(rung.plan for rung in runner.card.ladder)])
    cores, on_cpu = torch.get_num_threads(), runner.device.type == "cpu"
    some = sorted({1, cores // 2 or 1, 3 * cores // 4 or 1, cores}, reverse=True) if on_cpu else [cores]
    lanes = lanes or some
    times: Times = {n: {plan: {} for plan in plans} for n in lanes}
    several = min(8, runner.max_batch) if not runner.card.frames else min(2, runner.max_batch)
    timed, started = (1, several), time.perf_counter()
    for size in dict.fromkeys([*timed, *(size for size in BATCH_SIZES if size <= runner.max_batch)]):
        for threads in lanes:
            runner.use(threads)
            for plan in plans:
                if size not in timed:
                    runner.run(runner.blank_batch(size), plan)
                    continue
                taken = _later_run(runner, runner.blank_batch(size), plan)
                if not runner.cost_varies(
                    plan
                ):  # of what there is to see in a picture, a blank one tells nothing
                    times[threads][plan][size] = taken
        if time.perf_counter() - started > patience_s:
            break
    _again(runner, times, timed)
    runner.use(cores)
    runner.times = times


def _again(runner: ModelRunner, times: Times, sizes: Sequence[int]) -> None:
    """Time anew what was held up by whatever else the machine did: a plan that seems far too dear is never
    chosen, so that nothing would ever correct it."""
    cost = {rung.plan: rung.gflops for rung in runner.card.ladder}
    for _ in range(ANEW):
        odd = [(n, size, plan) for n in times for size in sizes for plan in held_up(times[n], size, cost)]
        for threads, size, plan in odd:
            runner.use(threads)
            taken = _later_run(runner, runner.blank_batch(size), plan)
            times[threads][plan][size] = min(taken, times[threads][plan][size])
        if not odd:
            break


def held_up(times: Mapping[Plan, Mapping[int, float]], size: int, cost: Mapping[Plan, float]) -> list[Plan]:
    """Plans that took longer by far than others let expect: than one that is dearer took, or than one that is
    cheaper, in proportion; small ones take longer for what they compute, and never less long."""
    known = {plan: found[size] for plan, found in times.items() if size in found and cost.get(plan)}

    def at_most(plan: Plan) -> float:
        others = (took * max(1.0, cost[plan] / cost[other]) for other, took in known.items() if other != plan)
        return min(others, default=math.inf)

    return [plan for plan, took in known.items() if took > ODD * at_most(plan)]


def _later_run(runner: ModelRunner, batch: Any, plan: Plan) -> float:
    """Seconds a batch takes that is not the first of its kind: the better of two, for one may be held up."""
    if any(isinstance(result, Exception) for result in runner.run(batch, plan)):
        raise SetupError(f"{runner.card.name} gives no finite answer, not even to a blank picture")
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        runner.run(batch, plan)
        taken.append(time.perf_counter() - began)
    return min(taken)
