"""One engine on a virtual clock: simulates what `foveate.engine` does between the policy and the runner."""

import heapq
import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from time import perf_counter

from foveate.core.model import Rung
from foveate.core.request import Objective
from foveate.estimation.arrivals import ArrivalMeter
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.policy import (
    DEFAULT_DEADLINE_S,
    BatchDecision,
    PolicyFactory,
    min_rung,
    virtual_deadline,
)
from loadtests.simulate.machine import Machine
from loadtests.simulate.record import End, SimulationRecord
from loadtests.simulate.workload import RequestClass, SimulatedRequest

_VIRTUAL_DEADLINE = attrgetter("virtual_deadline")
Decision = BatchDecision[SimulatedRequest]


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch on the device."""

    decision: Decision
    requests: Sequence[SimulatedRequest]
    """Those of the decision that were alive when the forward began."""
    started_at: float


class Replica:
    """Queue, latency model, arrival meter and policy around one machine.

    As in the engine: while a batch runs, the next one is prefetched only if it is full; an expired request is
    removed from the queue, or left out of the forward; every batch refits the latency model.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        policy: PolicyFactory,
        machine: Machine,
        record: SimulationRecord,
        max_batch: int,
        max_items: int,
    ) -> None:
        """rungs: those that the policy may choose; max_items: largest number of waiting requests."""
        self.rungs, self.machine, self.record, self.max_items = rungs, machine, record, max_items
        self.latency = LatencyModel(rungs)
        self.policy = policy(rungs, self.latency, max_batch)
        self.arrivals = ArrivalMeter(self.latency.predict(rungs[-1].plan, 1))
        self.waiting: list[SimulatedRequest] = []
        self._waiting_by_min_rung = [0] * len(rungs)
        self._expiries: list[tuple[float, int, SimulatedRequest]] = []
        self._quality = {rung.plan: rung.quality or 0.0 for rung in rungs}
        self._running: RunningBatch | None = None
        self._prefetched: Decision | None = None
        self._free_at = self._prefetched_s = 0.0

    def request(self, number: int, at: float, request_class: RequestClass) -> SimulatedRequest:
        """A request of this class that arrives now."""
        deadline = at + request_class.slo_s
        objective = Objective(None if math.isinf(deadline) else deadline, priority=request_class.priority)
        rung = min_rung(self.rungs, request_class.min_quality)
        return SimulatedRequest(
            number, at, virtual_deadline(objective, at), deadline, rung, request_class.tenant
        )

    @property
    def held(self) -> int:
        """Number of requests that wait or run."""
        running = len(self._running.requests) if self._running else 0
        return len(self.waiting) + running + (len(self._prefetched.entries) if self._prefetched else 0)

    def predicted_wait(self, now: float) -> float:
        """Seconds until the queue has run, each request on the cheapest plan that it accepts."""
        item_s = self.latency.item_s
        work_s = sum(n * item_s(self.rungs[i].plan) for i, n in enumerate(self._waiting_by_min_rung) if n)
        return self._next_start(now) - now + work_s

    def arrive(self, request: SimulatedRequest, now: float) -> float | None:
        """Admit or refuse a request. Returns when a batch ends, if one was started."""
        self._expire(now)
        if len(self.waiting) >= self.max_items:
            self.record.set_end(request, End.REFUSED)
            return None
        started = perf_counter()
        refusal = self.policy.admit(request, self.waiting, now, self._next_start(now))
        self._record_decision(started)
        allowed_s = request.deadline - now
        self.arrivals.record(now, DEFAULT_DEADLINE_S if math.isinf(allowed_s) else allowed_s)
        if refusal is not None:
            self.record.set_end(refusal.entry, End.REFUSED)
            if refusal.entry is request:
                return None
            self._dequeue([refusal.entry])
        insort(self.waiting, request, key=_VIRTUAL_DEADLINE)
        request.queued = True
        self._waiting_by_min_rung[request.min_rung] += 1
        if not math.isinf(request.deadline):
            heapq.heappush(self._expiries, (request.deadline, request.number, request))
        return self._serve(now)

    def finish(self, now: float) -> float | None:
        """Finish the running batch. Returns when the next batch ends, if one was started."""
        assert self._running is not None, "finish() needs a running batch"  # noqa: S101
        ran, self._running = self._running, None
        plan = ran.decision.plan
        for request in ran.requests:
            self.record.set_answered(request, now, self._quality[plan])
        self.latency.observe(plan, len(ran.requests), now - ran.started_at)
        self._free_at = now
        self._expire(now)
        prefetched, self._prefetched, self._prefetched_s = self._prefetched, None, 0.0
        ends = None if prefetched is None else self._start(prefetched, now)
        return self._serve(now) or ends

    def close(self) -> None:
        """The simulation is over: a request that was never served has missed its deadline."""
        for request in self.waiting:
            self.record.set_end(request, End.MISSED)

    def _next_start(self, now: float) -> float:
        """When the running and the prefetched batch are predicted to be done."""
        return max(now, self._free_at) + self._prefetched_s

    def _serve(self, now: float) -> float | None:
        """Start a batch if the device is idle, and prefetch a full one. Returns when the batch ends."""
        ends = None
        while self._prefetched is None and self.waiting:
            decision = self._decide(now)
            idle = self._running is None
            if decision is None or not decision.entries or not (idle or decision.full):
                break
            self._dequeue(decision.entries)
            if idle:
                ends = self._start(decision, now)
            else:
                self._prefetched, self._prefetched_s = decision, self._predict(decision)
        return ends

    def _decide(self, now: float) -> Decision | None:
        """Ask the policy for the next batch, and refuse the requests that it cannot serve in time."""
        started = perf_counter()
        decision = self.policy.choose(self.waiting, now, self._next_start(now), self.arrivals.read(now))
        self._record_decision(started)
        if decision is not None and decision.refused:
            for request in decision.refused:
                self.record.set_end(request, End.REFUSED)
            self._dequeue(decision.refused)
        return decision

    def _start(self, decision: Decision, now: float) -> float | None:
        """Run the requests that have not expired. Returns when the batch ends; None if all have expired."""
        alive = []
        for request in decision.entries:
            if request.deadline > now:
                alive.append(request)
            else:
                self.record.set_end(request, End.MISSED)
        if not alive:
            return None
        now += self.machine.gap_s
        self._running, self._free_at = RunningBatch(decision, alive, now), now + self._predict(decision)
        self.record.batches += 1
        self.record.ran += len(alive)
        return now + self.machine.run(decision.plan, len(alive))

    def _predict(self, decision: Decision) -> float:
        """Predicted seconds of a batch."""
        return self.latency.predict(decision.plan, len(decision.entries))

    def _expire(self, now: float) -> None:
        """End the waiting requests whose deadlines have passed."""
        late = []
        while self._expiries and self._expiries[0][0] <= now:
            request = heapq.heappop(self._expiries)[2]
            if request.queued:
                self.record.set_end(request, End.MISSED)
                late.append(request)
        if late:
            self._dequeue(late)

    def _dequeue(self, requests: Iterable[SimulatedRequest]) -> None:
        """Remove these requests from the queue."""
        for request in requests:
            request.queued = False
            self._waiting_by_min_rung[request.min_rung] -= 1
        self.waiting = [request for request in self.waiting if request.queued]

    def _record_decision(self, started: float) -> None:
        """Count a decision of the policy that began at this `perf_counter` time."""
        self.record.deciding_s += perf_counter() - started
        self.record.decisions += 1
