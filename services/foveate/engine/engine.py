"""The engine loop of one model: admit -> take -> run -> settle."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from foveate.core.errors import DeadlineExceeded, Draining, FoveateError, RunFailed, TooLate
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.batch import Batch
from foveate.engine.device import DeviceExecutor
from foveate.engine.executor import BatchExecutor
from foveate.engine.queue import QueueEntry, WaitingQueue
from foveate.engine.runner import HasThreads, Runner
from foveate.estimation.arrivals import ArrivalMeter
from foveate.estimation.host_load import CpuLoad, HostLoadMonitor
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import (
    DEFAULT_DEADLINE_S,
    BatchDecision,
    Candidate,
    PolicyFactory,
    QueuedRequest,
    pareto_rungs,
    virtual_deadline,
)
from foveate.scheduling.slo_policy import SloPolicy

log = logging.getLogger(__name__)

LONG_S = 10.0
"""Who allows more is no reason to let the queue grow any longer."""
RECENT_S = 1.0
"""So long after the last request to a model others still leave room for the next."""


class Engine:
    """Queue, loop and threads around one runner. Everything but `stack` and `run` is on the event loop.

    Engines of one device may share `compute`, the one thread that runs forwards.
    """

    def __init__(
        self,
        runner: Runner,
        metrics: Metrics,
        max_items: int = 1024,
        max_bytes: int = 2**28,
        compute: DeviceExecutor | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: PolicyFactory = SloPolicy,
        default_deadline_s: float = DEFAULT_DEADLINE_S,
        host: HostLoadMonitor | None = None,
    ) -> None:
        self.runner, self.clock = runner, clock
        self.default_deadline_s, self.host = default_deadline_s, host or HostLoadMonitor()
        self.latency = ThreadSelector(
            runner.card.ladder, runner.times if isinstance(runner, HasThreads) else {}
        )
        self.rungs = pareto_rungs(runner.card)
        self.policy = policy(self.rungs, self.latency, runner.max_batch)
        self.flow = ArrivalMeter(self.latency.predict(runner.card.full, 1))
        self.queue = WaitingQueue(max_items, max_bytes)
        self.draining = False
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._compute = compute or DeviceExecutor()
        self._settler = BatchExecutor(runner, self.latency, self._compute, metrics, clock)
        self._in_flight: set[QueueEntry] = set()
        self._prefetched: Batch | None = None
        name = runner.card.name
        self._demand, self._full = metrics.demand.labels(name), (-1, 0.0)
        metrics.waiting.labels(name).set_function(lambda: len(self.queue))
        metrics.waiting_bytes.labels(name).set_function(lambda: self.queue.bytes)

    @property
    def card(self) -> ModelCard:
        return self.runner.card

    @property
    def serving(self) -> bool:
        """The loop runs; False before the start, after the end, and should it ever have failed."""
        return self._loop is not None and not self._loop.done()

    @property
    def busy(self) -> bool:
        """Something admitted has no outcome yet."""
        return bool(self._in_flight)

    def start(self) -> None:
        self._compute.join(self)
        self._loop = asyncio.create_task(self._serve(), name=f"engine-{self.card.name}")
        self._loop.add_done_callback(self._ended)

    def _ended(self, loop: asyncio.Task[None]) -> None:
        """The loop is over. Should it ever fail, nobody waits in vain, and nobody is let in any more."""
        if loop.cancelled() or loop.exception() is None:
            return
        log.critical("the engine of %s failed", self.card.name, exc_info=loop.exception())
        self.draining = True
        for entry in list(self._in_flight):
            self._refuse(entry, RunFailed("the server failed on this request"))

    def reserve(self, objective: Objective, plan: Plan | None, ready_in_s: float) -> None:
        """Accept a request whose media will be ready in so many seconds, or refuse it now.

        Nothing has been decoded yet, so a refusal costs nothing. Raises DeadlineExceeded, BadPlan, TooLate.
        """
        now = self.clock()
        deadline = self._checked_deadline(objective, plan, now)
        candidate: QueuedRequest = Candidate(
            self._virtual_deadline(objective, now), deadline, self.min_rung(objective.min_quality), plan,
            objective.tenant,
        )  # fmt: skip
        others = self._compute.others(self)
        refusal = self.policy.admit(candidate, self.queue, now, self.free_at, now + ready_in_s, others)
        refused = refusal is not None and refusal.entry is candidate
        if refusal is None or not refused or refusal.takes_s <= deadline - now:
            self._count(deadline, now)  # a request that could not even run alone is no demand
        if refusal is not None and refused:
            self._decay_estimates()
            raise refusal.error(now)

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        """Admit a request and wait for its outcome. Cancelling the caller removes it from the queue.

        reserved: `reserve` has counted this request as an arrival.
        """
        entry = self.admit(request, reserved)
        try:
            return await entry.future
        finally:
            self._forget(entry)

    def admit(self, request: Request, reserved: bool = False) -> QueueEntry:
        """Queue a request, or refuse it. Raises Draining, Overloaded, BadPlan, DeadlineExceeded."""
        if self.draining:
            raise Draining("the server is shutting down; send the request to another one")
        now, objective = self.clock(), request.objective
        deadline = self._checked_deadline(objective, request.plan, now)
        self.queue.check_room(request.size_bytes, partial(self._predicted_wait, now))
        loop = asyncio.get_running_loop()
        min_rung = self.min_rung(objective.min_quality)
        entry = QueueEntry(
            request, self._virtual_deadline(objective, now), min_rung, loop.create_future(), now
        )
        if not reserved:
            self._count(deadline, now)
        self._make_room(entry, now)
        if objective.deadline is not None:
            entry.expiry = loop.call_later(deadline - now, self._expire, entry)
        self.queue.push(entry)
        self._in_flight.add(entry)
        self._changed.set()
        return entry

    def _checked_deadline(self, objective: Objective, plan: Plan | None, now: float) -> float:
        """The deadline in clock seconds, infinite if there is none. Raises BadPlan, DeadlineExceeded."""
        if plan is not None:
            self.runner.check(plan)
        if objective.deadline is None:
            return math.inf
        if objective.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        return objective.deadline

    def _virtual_deadline(self, objective: Objective, now: float) -> float:
        return virtual_deadline(objective, now, self.default_deadline_s)

    def refused(self, allowed_s: float) -> None:
        """Somebody was sent away before he came here: no request, but demand."""
        now = self.clock()
        self._count(now + allowed_s, now)

    @property
    def ahead_s(self) -> float:
        """Seconds until what waits now has run, at the least it accepts."""
        return self._predicted_wait(self.clock())

    def _decay_estimates(self) -> None:
        """Somebody is refused. While nothing runs nothing corrects what is predicted, and a machine that was
        slow for a moment would be taken to be slow for ever: so what was learnt of it fades."""
        if not self.busy and not self.host.pending:
            self.latency.decay()
            self.host.decay()

    def _count(self, deadline: float, now: float) -> None:
        allowed_s = self.default_deadline_s if math.isinf(deadline) else deadline - now
        self.flow.arrived(now, min(allowed_s, LONG_S))
        if self._full[0] != self.latency.version:
            self._full = self.latency.version, self._cost(self.card.full)
        self._demand.inc(self._full[1])

    def min_rung(self, min_quality: float) -> int:
        """Index of the cheapest rung that is good enough; of full where no other is."""
        qualities = (rung.quality or 0.0 for rung in self.rungs[:-1])
        return next((i for i, quality in enumerate(qualities) if quality >= min_quality), len(self.rungs) - 1)

    def _make_room(self, entry: QueueEntry, now: float) -> None:
        """Where not all can meet their deadlines, refuse the entry (raises TooLate) or a queued one."""
        refusal = self.policy.admit(entry, self.queue, now, self.free_at, others=self._compute.others(self))
        if refusal is None:
            return
        if refusal.entry is entry:
            self._decay_estimates()
            raise refusal.error(now)
        self._refuse(refusal.entry, refusal.error(now))

    def _refuse(self, entry: QueueEntry, error: FoveateError) -> None:
        if entry.alive:
            entry.future.set_exception(error)
        self.queue.remove(entry)

    def _predicted_wait(self, now: float) -> float:
        """Seconds until what waits now has run, at the least it accepts."""
        least = [self.latency.line(rung.plan).each for rung in self.rungs]
        return max(0.0, self.free_at - now) + sum(least[entry.min_rung] for entry in self.queue)

    def _expire(self, entry: QueueEntry) -> None:
        self._refuse(entry, DeadlineExceeded("the deadline passed before the answer was ready"))

    def _forget(self, entry: QueueEntry) -> None:
        """Nobody waits for this entry any more: drop whatever is still held for it."""
        if entry.expiry is not None:
            entry.expiry.cancel()
        self.queue.remove(entry)
        self._in_flight.discard(entry)
        if self.draining:
            self._changed.set()

    async def _serve(self) -> None:
        """The whole engine: wait for work, and for the device; take what should run, run it, settle."""
        while True:
            await self._wanted()
            async with self._compute.turn(self):
                batch, self._prefetched = self._prefetched or self._form_batch(), None
                if batch is not None:
                    await self._run(batch)

    async def _wanted(self) -> None:
        """Until there is something to run."""
        if self._prefetched is not None and self._prefetched.staging is not None:
            await self._prefetched.staging
        while self._prefetched is None and not len(self.queue):
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, batch: Batch) -> None:
        """Run a batch, and meanwhile have the next one made ready."""
        self._compute.runs_for(batch.predicted_s)
        running = asyncio.create_task(self._settler.run(batch), name=f"batch-{self.card.name}")
        running.add_done_callback(lambda _: self._changed.set())
        try:
            while self._prefetched is None and not running.done():
                self._changed.clear()
                self._prefetch()
                await self._changed.wait()
        finally:
            await running

    def _prefetch(self) -> None:
        """While a batch runs, only a full one is bound: anything less would miss those who come until the
        device is free; and none where others wait for the device, who may be due first."""
        if len(self.queue) >= self._enough and not self._compute.wanted(self):
            self._prefetched = self._form_batch(full=True)
            if self._prefetched is not None:
                self._prefetched.staging = asyncio.create_task(self._settler.stage(self._prefetched))

    def _form_batch(self, full: bool = False) -> Batch | None:
        """Take those who should run next out of the queue; full: only if no more could join them."""
        decision = self._decide()
        if decision is None or not decision.entries or (full and not decision.full):
            return None
        for entry in decision.entries:
            self.queue.remove(entry)
        predicted_s = self.latency.predict(decision.plan, len(decision.entries))
        return Batch(decision, self.latency.threads(decision.plan), predicted_s)

    @property
    def free_at(self) -> float:
        """When what runs and what is bound to run is predicted to be done; clock seconds."""
        return self._compute.free_at + (self._prefetched.predicted_s if self._prefetched else 0.0)

    @property
    def virtual_deadline(self) -> float:
        """When the first turn of those who wait comes; infinite where nobody does."""
        bound = (
            [entry.virtual_deadline for entry in self._prefetched.decision.entries]
            if self._prefetched
            else []
        )
        return min([*bound, *(entry.virtual_deadline for entry in self.queue[:1])], default=math.inf)

    @property
    def demand(self) -> DeviceDemand:
        """What those who wait and those who come take of the device."""
        now = self.clock()
        if now - self.flow.last > RECENT_S and not len(self.queue) and self._prefetched is None:
            return NO_DEMAND
        least = [self._cost(rung.plan) for rung in self.rungs]
        pinned = {plan: self._cost(plan) for plan in {entry.pinned for entry in self.queue} if plan}
        rows = [
            (entry.virtual_deadline, entry.deadline)
            + ((pinned[entry.pinned],) * 2 if entry.pinned else (least[-1], least[entry.min_rung]))
            for entry in self.queue
        ]  # fmt: skip
        if self._prefetched is not None:
            bound, takes = self._prefetched.decision.entries, self._prefetched.predicted_s
            rows.insert(0, (bound[0].virtual_deadline, min(entry.deadline for entry in bound), takes, takes))
        virtual_deadline, deadline, full_s, least_s = np.array(rows).T if rows else np.empty((4, 0))
        flow = self.flow.read(now)
        return DeviceDemand(
            virtual_deadline,
            deadline,
            full_s,
            least_s,
            flow.rate * least[-1],
            flow.rate * least[0],
            flow.allowed_s,
        )

    def _cost(self, plan: Plan) -> float:
        """Seconds that a request takes in a batch worth making."""
        size = self.latency.efficient_batch_size(plan, self.runner.max_batch)
        return self.latency.predict(plan, size) / size

    @property
    def _enough(self) -> int:
        """Requests of which a full batch may be made; with fewer there is nothing to decide yet."""
        return self.latency.efficient_batch_size(self.card.full, self.runner.max_batch)

    def _decide(self) -> BatchDecision[QueueEntry] | None:
        """Ask the policy, and refuse at once whom it has no time left for."""
        now, free_at = self.clock(), self.free_at
        arrivals = replace(self.flow.read(now), preparing=self.host.coming(self.card.name))
        # What a lone request took before it waited is over by now.
        alone = len(self._in_flight) == 1 and not self.host.pending and not self._compute.wanted(self)
        self.latency.set_cpu_load(CpuLoad() if alone else self.host.crowd)
        decision = self.policy.choose(self.queue, now, free_at, arrivals, self._compute.others(self))
        if decision is not None and decision.refused:
            error = TooLate("there is no time left to answer by the deadline", self._predicted_wait(now))
            for entry in decision.refused:
                self._refuse(entry, error)
        return decision

    async def drain(self) -> None:
        """Refuse newcomers from now on, and return once everything admitted has its outcome."""
        self.draining = True
        while self.busy:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Stop the loop; whoever still waits is told the server is going."""
        self.draining = True
        if self._loop is not None:
            self._loop.cancel()
        for entry in self._in_flight:
            if entry.alive:
                entry.future.set_exception(Draining("the server shut down before the request was run"))
        self._compute.leave(self)
        self._compute.close()
        self._settler.close()
