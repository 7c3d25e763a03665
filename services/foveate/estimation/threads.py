"""Chooses the number of threads of a forward, given the other CPU load of the machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.core.batching import BATCH_SIZES, WarmedPlan
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.host_load import CpuLoad
from foveate.estimation.latency import MAX_EXTRA_PLANS, LatencyModel, PlanTimes, log_ratio

CONTENTION_FACTOR = 3.0
"""Factor on the time of a forward for each of its cores that other work wants. The threads of a forward wait
for one another at every step, so that one delayed thread delays all of them."""


class ThreadSelector:
    """One latency model for each number of threads. A `Predictor`.

    For each plan, the number of threads is used that is fastest beside the current CPU load, and predictions
    come from the model of that number.
    """

    def __init__(self, ladder: Sequence[Rung], times: Mapping[int, PlanTimes]) -> None:
        """times: batch seconds by number of threads, measured on an idle machine; empty if the number of
        threads is fixed."""
        self._models = {threads: LatencyModel(ladder, measured) for threads, measured in times.items()}
        if not self._models:
            self._models = {1: LatencyModel(ladder)}
        self._max_threads = max(self._models)
        self._ladder, self._idle_times = ladder, dict[Plan, _IdleTimes]()
        # Copies: a runner adds to its own while it warms up.
        self._times = {
            threads: {plan: dict(seconds) for plan, seconds in measured.items()}
            for threads, measured in times.items()
        }
        self._warm_size: dict[Plan, int] | None = None
        self._load, self._choice, self.version = CpuLoad(), dict[Plan, int](), 0
        self.set_cpu_load(self._load)

    def set_warm(self, plans: Sequence[WarmedPlan]) -> None:
        """Only these rungs are warm, until `add_warm` adds others. Without this call, all are."""
        self._warm_size = {warmed.plan: warmed.size for warmed in plans}
        self.version += 1

    def add_warm(self, warmed: WarmedPlan) -> None:
        """A rung has run in batches of up to this size. Times that come with it replace what was assumed."""
        if self._warm_size is not None:
            self._warm_size[warmed.plan] = max(warmed.size, self._warm_size.get(warmed.plan, 0))
        for threads, seconds in warmed.times.items():
            if threads in self._times and self._times[threads].get(warmed.plan) != seconds:
                self._times[threads][warmed.plan] = dict(seconds)
                self._models[threads].learn(warmed.plan, seconds)
        self._idle_times.clear()
        self.version += 1

    def is_warm(self, plan: Plan) -> bool:
        """Whether a policy may choose this rung: its kernels are prepared."""
        return self._warm_size is None or plan in self._warm_size

    def set_cpu_load(self, load: CpuLoad) -> None:
        """Choose the numbers of threads for forwards that share the cores with this load."""
        self._load = load
        choice = {rung.plan: self._fastest(rung.plan) for rung in self._ladder}
        self.version += choice != self._choice
        self._choice = choice

    def threads(self, plan: Plan) -> int:
        """The number of threads for a forward under this plan."""
        return self._choice.get(plan) or self._fastest(plan)

    def _fastest(self, plan: Plan) -> int:
        if len(self._models) == 1:
            return self._max_threads
        if plan not in self._idle_times:
            self._idle_times[plan] = self._find_idle_times(plan)
        idle = self._idle_times[plan]
        busy_cores = self._load.cores(idle.span_s)

        def seconds(threads: int) -> float:
            contended = max(0.0, busy_cores - (self._max_threads - threads))
            return idle.seconds[threads] * math.exp(math.log(CONTENTION_FACTOR) * contended)

        return min(self._models, key=seconds)

    def _find_idle_times(self, plan: Plan) -> "_IdleTimes":
        """The times of this plan, or of the measured plan that is nearest in cost."""
        if len(self._idle_times) > MAX_EXTRA_PLANS:
            self._idle_times.clear()
        baseline = self._times[self._max_threads]
        measured = [rung for rung in self._ladder if all(t.get(rung.plan) for t in self._times.values())]
        cost = next((rung.gflops for rung in self._ladder if rung.plan == plan), self._ladder[-1].gflops)
        nearest = min(measured, key=lambda rung: log_ratio(rung.gflops, cost)).plan
        sizes = set.intersection(*(set(times[nearest]) for times in self._times.values()))
        seconds = {
            threads: sum(times[nearest][size] / baseline[nearest][size] for size in sizes)
            for threads, times in self._times.items()
        }
        return _IdleTimes(baseline[nearest][max(sizes)], seconds)

    def _model(self, plan: Plan) -> LatencyModel:
        return self._models[self.threads(plan)]

    @property
    def safety_factor(self) -> float:
        """The largest safety factor of the models in use."""
        return max(self._models[threads].safety_factor for threads in set(self._choice.values()))

    def item_s(self, plan: Plan) -> float:
        """Seconds by which one more item lengthens a batch."""
        return self._model(plan).item_s(plan)

    def predict(self, plan: Plan, size: int) -> float:
        """Seconds of a batch of this size under a plan."""
        return self._model(plan).predict(plan, size)

    def efficient_batch_size(self, plan: Plan, max_batch: int) -> int:
        """The size, at most `max_batch`, beyond which a larger batch hardly makes an item cheaper."""
        size = self._model(plan).efficient_batch_size(plan, max_batch)
        if self._warm_size is None or plan not in self._warm_size:
            return size
        # One size more than has run: each new size prepares kernels, and a burst must not meet all at once.
        return min(size, next((s for s in BATCH_SIZES if s > self._warm_size[plan]), size))

    def decay(self) -> None:
        """Move all slowdowns back towards 1: what is known about the machine may be out of date."""
        self.version += 1
        for model in self._models.values():
            model.decay()

    def observe(self, plan: Plan, size: int, seconds: float, threads: int) -> float:
        """Learn from a batch that ran on this many threads. Returns its seconds over the predicted."""
        self.version += 1
        if self._warm_size is not None and size > self._warm_size.get(plan, size):
            self._warm_size[plan] = size
        return self._models[threads].observe(plan, size, seconds)


@dataclass(frozen=True, slots=True)
class _IdleTimes:
    """Batch times of a plan on an idle machine."""

    span_s: float
    """Seconds of a large batch on the maximum number of threads."""
    seconds: Mapping[int, float]
    """By number of threads: the sum over batch sizes of the time relative to `max_threads`."""
