"""The first runs of a runner: what must run before the first request, and what may run later in idle time."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.batching import BATCH_SIZES, WarmedPlan
from foveate.core.errors import FoveateError, SetupError
from foveate.core.plan import Plan

if TYPE_CHECKING:  # both need torch, which models of other libraries do without
    from foveate.models.loading.measured_times import BatchTimes
    from foveate.models.runners.base import ModelRunner

OUTLIER_FACTOR = 3.0
"""A plan that takes this many times its expected time is timed again."""
MAX_RETIMINGS = 4
TIMED_RUNS = 2
"""Timed runs of a batch after its first run. The faster one counts, because one may be interrupted."""
TIMED_SIZE, TIMED_VIDEOS = 8, 2
"""The larger of the two batch sizes that are timed, for images and for videos; the smaller one is 1."""


def run_once(runner: "ModelRunner") -> None:
    """Run one blank input. Raises SetupError, which names the reason, if the model gives no valid answer."""
    for result in runner.run(runner.blank_batch(1), runner.full):
        if isinstance(result, Exception):
            reason = (
                result.detail if isinstance(result, FoveateError) else f"{type(result).__name__}: {result}"
            )
            raise SetupError(f"{runner.card.name} gives no valid answer to a blank image: {reason}")


@dataclass(frozen=True, slots=True)
class _Forward:
    """One blank batch to run."""

    plan: Plan
    size: int
    threads: int
    timed: bool = False
    last: bool = False
    """Whether this is the last forward of the plan at the sizes that were asked for."""


class LadderWarmup:
    """The blank batches that a runner has still to run, in the order in which they help most.

    The first batch of a plan and size prepares kernels, for each number of threads, and takes up to five
    times as long as the next one. `run_essential` runs the full plan and the cheapest rung alone and in a
    batch: with these two, the server can answer every request, and hurry. After that come the cheapest rung
    at all sizes, and the other rungs, cheapest first; the engine runs them one by one while it is idle.
    """

    def __init__(
        self,
        runner: "ModelRunner",
        thread_counts: Sequence[int] = (),
        remembered: "BatchTimes | None" = None,
        save: "Callable[[BatchTimes], None] | None" = None,
        cores: int = 0,
    ) -> None:
        """thread_counts: the numbers of threads to try; empty: a few up to the number of cores.

        remembered: times that were measured before, which are not measured again. save: stores the times.
        cores: the largest number of threads; 0: torch's.
        """
        self.runner, self._save = runner, save
        self._cores = cores or _torch_threads()
        self.thread_counts = tuple(thread_counts) or _default_thread_counts(runner, self._cores)
        plans = dict.fromkeys([rung.plan for rung in runner.card.ladder])
        self.times: BatchTimes = {
            threads: {plan: dict((remembered or {}).get(threads, {}).get(plan, {})) for plan in plans}
            for threads in self.thread_counts
        }
        """Seconds by number of threads, plan and batch size. A plan without times is not measured yet."""
        timed = TIMED_VIDEOS if runner.card.frames else TIMED_SIZE
        self.timed_sizes = tuple(dict.fromkeys((1, min(timed, runner.max_batch))))
        self._warm: dict[Plan, int] = {}
        self._measured, self._retimings = False, MAX_RETIMINGS
        self._essential = tuple(dict.fromkeys([runner.full, runner.card.ladder[0].plan]))
        self._forwards = deque(self._forwards_of(self._essential, self.timed_sizes))
        self._later = deque(self._forwards_for_idle_time(plans))
        self._total = len(self._forwards) + len(self._later)

    def _forwards_for_idle_time(self, plans: Mapping[Plan, None]) -> list[_Forward]:
        cheapest = self._essential[-1]
        larger = [size for size in BATCH_SIZES if size <= self.runner.max_batch]
        forwards = [f for size in larger if size not in self.timed_sizes
                    for f in self._forwards_of([cheapest], [size])]  # fmt: skip
        others = [plan for plan in plans if plan not in self._essential]
        return forwards + self._forwards_of(others, self.timed_sizes)

    def _forwards_of(self, plans: Sequence[Plan], sizes: Sequence[int]) -> list[_Forward]:
        """For each plan: all sizes on all numbers of threads."""
        forwards: list[_Forward] = []
        for plan in plans:
            for size in sizes:
                for threads in self.thread_counts:
                    forwards.append(_Forward(plan, size, threads))
                    if self._needs_time(plan, size, threads):
                        forwards += [_Forward(plan, size, threads, timed=True)] * TIMED_RUNS
            last = forwards.pop()
            forwards.append(_Forward(last.plan, last.size, last.threads, last.timed, last=True))
        return forwards

    def _needs_time(self, plan: Plan, size: int, threads: int) -> bool:
        """Whether to time it. The time of a plan that varies with the content says nothing on blank input."""
        known = self.times[threads][plan]
        return size in self.timed_sizes and size not in known and not self.runner.cost_varies(plan)

    @property
    def warm(self) -> Sequence[WarmedPlan]:
        """The plans that have run, with the largest size that has run of each."""
        return [WarmedPlan(plan, size, self._times_of(plan)) for plan, size in self._warm.items()]

    @property
    def ratio(self) -> float:
        """The share of the forwards that have run, 0 to 1."""
        left = len(self._forwards) + len(self._later)
        return 1 - left / self._total if left else 1.0

    @property
    def next(self) -> tuple[Plan, int] | None:
        """Plan and size of the next batch; None if all have run."""
        forward = self._forwards[0] if self._forwards else self._later[0] if self._later else None
        return None if forward is None else (forward.plan, forward.size)

    def run_essential(self) -> None:
        """Run what the first request needs. Raises SetupError if the model gives no finite answer."""
        run_once(self.runner)
        while self._forwards:
            self._run(self._forwards.popleft())
        self._retime(self._essential)
        self.runner.use(self._cores)
        self._store()

    def run_next(self) -> WarmedPlan | None:
        """Run the next batch, on the thread that runs requests; the plan, once all its batches have run."""
        if not self._later:
            return None
        warmed = self._run(self._later.popleft())
        if not self._later:
            self._retime_later()
        if warmed is not None:
            self._store()  # a server may end before its whole ladder is warm
        return warmed

    def skip(self, plan: Plan) -> None:
        """Leave out the batches of a plan that are left for idle time, because one has failed."""
        self._later = deque(forward for forward in self._later if forward.plan != plan)

    def run_all(self) -> None:
        """Run everything at once, for a caller that serves no requests meanwhile."""
        self.run_essential()
        while self._later:
            self.run_next()
        self.runner.use(self._cores)

    def _run(self, forward: _Forward) -> WarmedPlan | None:
        runner, plan, size = self.runner, forward.plan, forward.size
        runner.use(forward.threads)
        batch = runner.blank_batch(size)
        started = time.perf_counter()
        runner.run(batch, plan)
        if forward.timed:
            seconds, known = time.perf_counter() - started, self.times[forward.threads][plan]
            known[size] = min(seconds, known.get(size, math.inf))
            self._measured = True
        if not forward.last:
            return None
        self._warm[plan] = max(size, self._warm.get(plan, 0))
        return WarmedPlan(plan, self._warm[plan], self._times_of(plan))

    def _times_of(self, plan: Plan) -> dict[int, dict[int, float]]:
        return {threads: dict(times[plan]) for threads, times in self.times.items() if times[plan]}

    def _outliers(self) -> list[_Forward]:
        """Timed batches of warm plans that took far longer than the others imply, to be timed again.

        Other work on the machine may have slowed them down. The scheduler never chooses a plan that seems far
        too slow, so nothing would correct its time later.
        """
        gflops = {rung.plan: rung.gflops for rung in self.runner.card.ladder}
        return [
            _Forward(plan, size, threads, timed=True, last=True)
            for threads, times in self.times.items()
            for size in self.timed_sizes
            for plan in slow_outliers(times, size, gflops)
        ]

    def _retime(self, plans: Sequence[Plan]) -> None:
        """Time outliers among these plans again, now."""
        for _ in range(MAX_RETIMINGS if self._measured else 0):
            again = [forward for forward in self._outliers() if forward.plan in plans]
            for forward in again:
                self._run(forward)
            if not again:
                break

    def _retime_later(self) -> None:
        """Add outliers to the forwards of idle time. The last size that is timed again reports the plan."""
        if self._measured and self._retimings:
            self._retimings -= 1
            self._later.extend(self._outliers())

    def _store(self) -> None:
        if self._measured and self._save is not None:
            self._save(self.times)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _default_thread_counts(runner: "ModelRunner", cores: int) -> tuple[int, ...]:
    if runner.device.type != "cpu":
        return (cores,)
    return tuple(sorted({1, cores // 2 or 1, 3 * cores // 4 or 1, cores}, reverse=True))


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
