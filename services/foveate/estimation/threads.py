"""How many threads a forward had best use beside what else the cores do, and how long it takes then."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.host_load import CpuLoad
from foveate.estimation.latency import KNOWN, LatencyModel, Line, PlanTimes, apart

CROWDED = 3.0
"""How many times as long a forward takes for each core that others want of those it runs on: its threads
wait for one another at every step, and the one that is held up holds up all."""


class ThreadSelector:
    """A latency model for each number of threads that forwards may use; for each plan the one answers
    that is quickest beside what else there is to do."""

    def __init__(self, ladder: Sequence[Rung], times: Mapping[int, PlanTimes]) -> None:
        """times: by number of threads, as measured while nothing else was done; empty: forwards always
        use the same."""
        self._models = {threads: LatencyModel(ladder, found) for threads, found in times.items()}
        if not self._models:
            self._models = {1: LatencyModel(ladder)}
        self._most = max(self._models)
        self._ladder, self._times, self._alone = ladder, times, dict[Plan, _Alone]()
        self._crowd, self._choice, self.version = CpuLoad(), dict[Plan, int](), 0
        self.set_cpu_load(self._crowd)

    def set_cpu_load(self, crowd: CpuLoad) -> None:
        """Forwards will run beside this."""
        self._crowd = crowd
        choice = {rung.plan: self._chosen(rung.plan) for rung in self._ladder}
        self.version += choice != self._choice
        self._choice = choice

    def threads(self, plan: Plan) -> int:
        """How many a forward under this plan had best use now."""
        return self._choice.get(plan) or self._chosen(plan)

    def _chosen(self, plan: Plan) -> int:
        if len(self._models) == 1:
            return self._most
        if plan not in self._alone:
            self._alone[plan] = self._quiet(plan)
        alone = self._alone[plan]
        others = self._crowd.cores(alone.span_s)

        def seconds(threads: int) -> float:
            wanted = max(0.0, others - (self._most - threads))
            return alone.seconds[threads] * math.exp(math.log(CROWDED) * wanted)

        return min(self._models, key=seconds)

    def _quiet(self, plan: Plan) -> "_Alone":
        """Of this plan, or of the one that was timed and is nearest in cost."""
        if len(self._alone) > KNOWN:
            self._alone.clear()
        every = self._times[self._most]
        timed = [rung for rung in self._ladder if every.get(rung.plan)]
        cost = next((rung.gflops for rung in self._ladder if rung.plan == plan), self._ladder[-1].gflops)
        near = min(timed, key=lambda rung: apart(rung.gflops, cost)).plan
        sizes = set.intersection(*(set(found[near]) for found in self._times.values()))
        seconds = {
            threads: sum(found[near][size] / every[near][size] for size in sizes)
            for threads, found in self._times.items()
        }
        return _Alone(every[near][max(sizes)], seconds)

    def _model(self, plan: Plan) -> LatencyModel:
        return self._models[self.threads(plan)]

    @property
    def safety_factor(self) -> float:
        return max(self._models[threads].safety_factor for threads in set(self._choice.values()))

    def line(self, plan: Plan) -> Line:
        return self._model(plan).line(plan)

    def predict(self, plan: Plan, size: int) -> float:
        return self._model(plan).predict(plan, size)

    def efficient_batch_size(self, plan: Plan, most: int) -> int:
        return self._model(plan).efficient_batch_size(plan, most)

    def decay(self) -> None:
        self.version += 1
        for model in self._models.values():
            model.decay()

    def observe(self, plan: Plan, size: int, seconds: float, threads: int) -> float:
        """A batch has run on so many threads. Gives what it took over what was predicted."""
        self.version += 1
        return self._models[threads].observe(plan, size, seconds)


@dataclass(frozen=True, slots=True)
class _Alone:
    """What batches of a plan take on a machine that does nothing else."""

    span_s: float
    """Seconds of a large batch on all threads."""
    seconds: Mapping[int, float]
    """By threads, on a scale of their own."""
