"""One engine on a virtual clock: what `foveate.engine.engine` does between the policy and the runner."""

import heapq
import math
from bisect import insort
from collections.abc import Iterable, Sequence
from operator import attrgetter
from time import perf_counter

from foveate.core.model import Rung
from foveate.core.request import Objective
from foveate.estimation.arrivals import ArrivalMeter
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, BatchDecision, PolicyFactory, virtual_deadline
from loadtests.simulate.machine import Machine
from loadtests.simulate.record import End, Record
from loadtests.simulate.workload import Job, Kind

_VIRTUAL_DEADLINE = attrgetter("virtual_deadline")


def min_rung(rungs: Sequence[Rung], min_quality: float) -> int:
    """Index of the cheapest rung that is good enough; of full where no other is."""
    qualities = (rung.quality or 0.0 for rung in rungs[:-1])
    return next((i for i, quality in enumerate(qualities) if quality >= min_quality), len(rungs) - 1)


class Replica:
    """Queue, latency model, flow and policy around one machine.

    As in the engine: while a batch runs, only a full one is bound ahead; who expires is taken out of the
    queue, or left out of the forward; every batch that ran refits the latency model.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        policy: PolicyFactory,
        machine: Machine,
        record: Record,
        max_batch: int,
        max_items: int,
    ) -> None:
        """rungs: those the policy may choose from."""
        self.rungs, self.machine, self.record, self.max_items = rungs, machine, record, max_items
        self.latency = LatencyModel(rungs)
        self.policy = policy(rungs, self.latency, max_batch)
        self.flow = ArrivalMeter(self.latency.predict(rungs[-1].plan, 1))
        self.waiting: list[Job] = []
        self._held = [0] * len(rungs)  # how many wait, by their floor
        self._expiries: list[tuple[float, int, Job]] = []
        self._quality = {rung.plan: rung.quality or 0.0 for rung in rungs}
        self._running: tuple[BatchDecision[Job], Sequence[Job], float] | None = None
        self._bound: BatchDecision[Job] | None = None
        self._free_at = self._bound_s = 0.0

    def job(self, number: int, at: float, kind: Kind) -> Job:
        """A request that comes now."""
        deadline = at + kind.slo_s
        objective = Objective(None if math.isinf(deadline) else deadline, priority=kind.priority)
        rung = min_rung(self.rungs, kind.min_quality)
        return Job(number, at, virtual_deadline(objective, at), deadline, rung, kind.tenant)

    @property
    def held(self) -> int:
        """Requests that wait or run here."""
        running = len(self._running[1]) if self._running else 0
        return len(self.waiting) + running + (len(self._bound.entries) if self._bound else 0)

    def predicted_wait(self, now: float) -> float:
        """Seconds until what waits now has run, at the least it accepts."""
        line = self.latency.line
        work = sum(n * line(self.rungs[i].plan).each for i, n in enumerate(self._held) if n)
        return self._free(now) - now + work

    def arrive(self, job: Job, now: float) -> float | None:
        """Admit or refuse. Gives when a batch ends, if one was started."""
        self._expire(now)
        if len(self.waiting) >= self.max_items:
            self.record.ended(job, End.REFUSED)
            return None
        started = perf_counter()
        refusal = self.policy.admit(job, self.waiting, now, self._free(now))
        self._count(started)
        allowed = job.deadline - now
        self.flow.arrived(now, DEFAULT_DEADLINE_S if math.isinf(allowed) else allowed)
        if refusal is not None:
            self.record.ended(refusal.entry, End.REFUSED)
            if refusal.entry is job:
                return None
            self._leave([refusal.entry])
        insort(self.waiting, job, key=_VIRTUAL_DEADLINE)
        job.waits = True
        self._held[job.min_rung] += 1
        if not math.isinf(job.deadline):
            heapq.heappush(self._expiries, (job.deadline, job.number, job))
        return self._serve(now)

    def finish(self, now: float) -> float | None:
        """What runs has run. Gives when the next batch ends, if one was started."""
        assert self._running is not None, "something runs"  # noqa: S101
        decision, jobs, asked = self._running
        for job in jobs:
            self.record.answered(job, now, self._quality[decision.plan])
        self.latency.observe(decision.plan, len(jobs), now - asked)
        self._running, self._free_at = None, now
        self._expire(now)
        bound, self._bound, self._bound_s = self._bound, None, 0.0
        ends = None if bound is None else self._start(bound, now)
        return self._serve(now) or ends

    def close(self) -> None:
        """Nothing comes any more: whom the policy never served has missed its deadline."""
        for job in self.waiting:
            self.record.ended(job, End.MISSED)

    def _free(self, now: float) -> float:
        """When what runs and what is bound to run is predicted to be done."""
        return max(now, self._free_at) + self._bound_s

    def _serve(self, now: float) -> float | None:
        """Take what should run next, and what can be bound behind it."""
        ends = None
        while self._bound is None and self.waiting:
            decision = self._decide(now)
            idle = self._running is None
            if decision is None or not decision.entries or not (idle or decision.full):
                break
            self._leave(decision.entries)
            if idle:
                ends = self._start(decision, now)
            else:
                self._bound, self._bound_s = decision, self._predict(decision)
        return ends

    def _decide(self, now: float) -> BatchDecision[Job] | None:
        started = perf_counter()
        decision = self.policy.choose(self.waiting, now, self._free(now), self.flow.read(now))
        self._count(started)
        if decision is not None and decision.refused:
            for job in decision.refused:
                self.record.ended(job, End.REFUSED)
            self._leave(decision.refused)
        return decision

    def _start(self, decision: BatchDecision[Job], now: float) -> float | None:
        """Run those who still wait. None where nobody does."""
        jobs = []
        for job in decision.entries:
            if job.deadline > now:
                jobs.append(job)
            else:
                self.record.ended(job, End.MISSED)
        if not jobs:
            return None
        now += self.machine.between_s
        self._running, self._free_at = (decision, jobs, now), now + self._predict(decision)
        self.record.batches += 1
        self.record.ran += len(jobs)
        return now + self.machine.run(decision.plan, len(jobs))

    def _predict(self, decision: BatchDecision[Job]) -> float:
        return self.latency.predict(decision.plan, len(decision.entries))

    def _expire(self, now: float) -> None:
        late = []
        while self._expiries and self._expiries[0][0] <= now:
            job = heapq.heappop(self._expiries)[2]
            if job.waits:
                self.record.ended(job, End.MISSED)
                late.append(job)
        if late:
            self._leave(late)

    def _leave(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            job.waits = False
            self._held[job.min_rung] -= 1
        self.waiting = [job for job in self.waiting if job.waits]

    def _count(self, started: float) -> None:
        self.record.deciding_s += perf_counter() - started
        self.record.decisions += 1
