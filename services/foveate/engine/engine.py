"""The engine loop of one model: admit -> take -> run -> settle."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from foveate.core.errors import DeadlineExceeded, Draining, FoveateError, RunFailed, TooLate
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.batch import Batch, forward
from foveate.engine.compute import Compute
from foveate.engine.flow import FlowMeter
from foveate.engine.host import Crowd, Host
from foveate.engine.lanes import Lanes
from foveate.engine.policy import Decision, Newcomer, PolicyMaker, Waiting
from foveate.engine.promise import Promise
from foveate.engine.queue import Entry, WaitingQueue
from foveate.engine.runner import Explainer, Runner, Threaded
from foveate.engine.terms import Terms, dependable, too_late

log = logging.getLogger(__name__)

LONG_S = 10.0
"""Who allows more is no reason to let the queue grow any longer."""


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
        compute: Compute | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: PolicyMaker = Promise,
        terms: Terms | None = None,
        host: Host | None = None,
    ) -> None:
        self.runner, self.clock = runner, clock
        self.terms, self.host = terms or Terms(), host or Host()
        self.latency = Lanes(runner.card.ladder, runner.times if isinstance(runner, Threaded) else {})
        self.rungs = dependable(runner.card)
        self.policy = policy(self.rungs, self.latency, runner.max_batch)
        self.flow = FlowMeter(self.latency.predict(runner.card.full, 1))
        self.queue = WaitingQueue(max_items, max_bytes)
        self.draining = False
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._compute = compute or Compute()
        self._stage = ThreadPoolExecutor(1, "stage")
        self._in_flight: set[Entry] = set()
        self._bound_s = 0.0
        self._bind(metrics)

    def _bind(self, metrics: Metrics) -> None:
        """Resolve the metric children once; looking labels up costs more than counting."""
        name = self.runner.card.name
        self._queue_wait = metrics.queue_wait.labels(name)
        self._stack_time = metrics.stage.labels(name, "stack")
        self._compute_time = metrics.stage.labels(name, "compute")
        self._batch_size = metrics.batch_size.labels(name)
        self._prediction = metrics.prediction.labels(name)
        self._running_gauge = metrics.running.labels(name)
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

    async def submit(self, request: Request) -> Outcome:
        """Admit and wait. Cancelling the caller takes the request out of the queue."""
        entry = self.admit(request)
        try:
            return await entry.future
        finally:
            self._forget(entry)

    def admit(self, request: Request) -> Entry:
        """Take a request in, or refuse it at once. Raises Draining, Overloaded, BadPlan, DeadlineExceeded."""
        if self.draining:
            raise Draining("the server is shutting down; send the request to another one")
        if request.plan is not None:
            self.runner.check(request.plan)
        now, objective = self.clock(), request.objective
        left = None if objective.deadline is None else objective.deadline - now
        if left is not None and left <= 0:
            raise DeadlineExceeded("the deadline had passed before the request was admitted")
        self.queue.check_room(request.size_bytes, partial(self._predicted_wait, now))
        loop = asyncio.get_running_loop()
        due, floor = self.terms.due(objective, now), self.floor(objective.min_quality)
        entry = Entry(request, due, floor, loop.create_future(), now)
        if not request.expected:
            self._count(entry.deadline, now)
        self._make_room(entry, now)
        if left is not None:
            entry.expiry = loop.call_later(left, self._expire, entry)
        self.queue.push(entry)
        self._in_flight.add(entry)
        self._changed.set()
        return entry

    def expect(self, objective: Objective, plan: Plan | None, ready_in_s: float) -> None:
        """A request came that can be run in so many seconds. Raises TooLate where that is too late."""
        now = self.clock()
        due, floor = self.terms.due(objective, now), self.floor(objective.min_quality)
        deadline = math.inf if objective.deadline is None else objective.deadline
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed before the request was read")
        if plan is not None:
            self.runner.check(plan)
        newcomer: Waiting = Newcomer(due, deadline, floor, plan, objective.tenant)
        refusal = self.policy.admit(newcomer, self.queue, now, self.free_at, now + ready_in_s)
        if refusal is None or refusal.entry is not newcomer:
            self._count(deadline, now)
            return
        if refusal.takes_s <= deadline - now:  # what is hopeless anyhow is no load
            self._count(deadline, now)
        self._doubt()
        raise too_late(refusal, deadline - now)

    def _doubt(self) -> None:
        """Somebody is refused. While nothing runs nothing corrects what is predicted, and a machine that was
        slow for a moment would be taken to be slow for ever: so what was learnt of it fades."""
        if not self.busy and not self.host.pending:
            self.latency.doubt()
            self.host.doubt()

    def _count(self, deadline: float, now: float) -> None:
        allowed_s = self.terms.patience_s if math.isinf(deadline) else deadline - now
        self.flow.arrived(now, min(allowed_s, LONG_S))

    def floor(self, min_quality: float) -> int:
        """Index of the cheapest rung that is good enough; of full where no other is."""
        qualities = (rung.quality or 0.0 for rung in self.rungs[:-1])
        return next((i for i, quality in enumerate(qualities) if quality >= min_quality), len(self.rungs) - 1)

    def _make_room(self, entry: Entry, now: float) -> None:
        """Raises TooLate where the newcomer cannot be answered in time; or makes another one fail so."""
        refusal = self.policy.admit(entry, self.queue, now, self.free_at)
        if refusal is None:
            return
        error = too_late(refusal, refusal.entry.deadline - now)
        if refusal.entry is entry:
            self._doubt()
            raise error
        self._refuse(refusal.entry, error)

    def _refuse(self, entry: Entry, error: FoveateError) -> None:
        if entry.alive:
            entry.future.set_exception(error)
        self.queue.remove(entry)

    def _predicted_wait(self, now: float) -> float:
        """Seconds until what waits now has run, at the least it accepts."""
        least = [self.latency.line(rung.plan).each for rung in self.rungs]
        return max(0.0, self.free_at - now) + sum(least[entry.floor] for entry in self.queue)

    def _expire(self, entry: Entry) -> None:
        self._refuse(entry, DeadlineExceeded("the deadline passed before the answer was ready"))

    def _forget(self, entry: Entry) -> None:
        """Nobody waits for this entry any more: drop whatever is still held for it."""
        if entry.expiry is not None:
            entry.expiry.cancel()
        self.queue.remove(entry)
        self._in_flight.discard(entry)
        if self.draining:
            self._changed.set()

    async def _serve(self) -> None:
        """The whole engine: take what should run next, stage it if something still runs, run it, settle."""
        while True:
            decision = await self._take()
            batch = Batch(decision, self.latency.threads(decision.plan), self._predict(decision))
            self._bound_s += batch.predicted_s
            if self._running is not None and not self._running.done():
                await self._stage_ahead(batch)
                await self._running
            self._running = asyncio.create_task(self._run(batch))

    @property
    def free_at(self) -> float:
        """When what runs and what is bound to run is predicted to be done; clock seconds."""
        return self._compute.free_at + self._bound_s

    def _predict(self, decision: Decision[Entry]) -> float:
        return self.latency.predict(decision.plan, len(decision.entries))

    async def _take(self) -> Decision[Entry]:
        """Wait for work that should be bound now.

        While a batch runs, only a full one is bound ahead: anything less would miss those who come
        until the runner is free.
        """
        while True:
            self._changed.clear()
            idle = self._running is None or self._running.done()
            decision = self._decide() if idle or len(self.queue) >= self._enough else None
            if decision is not None and decision.entries and (idle or decision.full):
                for entry in decision.entries:
                    self.queue.remove(entry)
                return decision
            await self._changed.wait()

    @property
    def _enough(self) -> int:
        """Requests of which a full batch may be made; with fewer there is nothing to decide yet."""
        return self.latency.useful_batch(self.card.full, self.runner.max_batch)

    @property
    def _full_s(self) -> float:
        """Seconds that a request takes at full, in a batch worth making."""
        return self.latency.predict(self.card.full, self._enough) / self._enough

    def _decide(self) -> Decision[Entry] | None:
        """Ask the policy, and refuse at once whom it has no time left for."""
        now, free_at = self.clock(), self.free_at
        share = self._compute.share(self.card.name)
        others_s, flow = self._compute.patience(self.card.name), self.flow.read(now)
        fair = self._compute.fair(self.card.name, flow.rate * self._full_s)
        flow = replace(flow, coming=self.host.pending, share=share, fair=fair, others_s=others_s)
        # What a lone request took before it waited is over by now.
        alone = len(self._in_flight) == 1 and not self.host.pending
        self.latency.beside(Crowd() if alone else self.host.crowd)
        decision = self.policy.choose(self.queue, now, free_at, flow)
        if decision is not None and decision.refused:
            error = TooLate("there is no time left to answer by the deadline", self._predicted_wait(now))
            for entry in decision.refused:
                self._refuse(entry, error)
        return decision

    async def _stage_ahead(self, batch: Batch) -> None:
        """Stack the next batch while one runs. A failure here is met again, and settled, in `_run`."""
        started = self.clock()
        media = [entry.request.media for entry in batch.decision.entries]
        work = asyncio.get_running_loop().run_in_executor(
            self._stage, self.runner.stack, media, batch.decision.plan
        )
        try:
            batch.stacked = await work
        except Exception:
            log.debug("staging ahead failed", exc_info=True)
        self._stack_time.observe(self.clock() - started)

    async def _run(self, batch: Batch) -> None:
        """When the device is free, run those who still wait, and give each of them its outcome."""
        allowed_s = self.flow.read(self.clock()).allowed_s
        turn = self._compute.turn(self.card.name, batch.predicted_s, allowed_s)
        # The next one may be bound already: it is taken before this task first runs.
        self._bound_s = max(0.0, self._bound_s - batch.predicted_s)
        try:
            async with turn:
                await self._forward(batch)
        except Exception:  # whatever it was, it ends these requests and not the loop
            log.exception("a batch of %d failed", len(batch.decision.entries))
            for entry in batch.decision.entries:
                if entry.alive:
                    entry.future.set_exception(RunFailed("the model failed on this request"))
        finally:
            self._changed.set()

    async def _forward(self, batch: Batch) -> None:
        started = self.clock()
        self._running_gauge.set(len(batch.decision.entries))
        try:
            entries, results = await self._compute.run(partial(forward, self.runner, batch, self.clock))
        finally:
            self._running_gauge.set(0)
        if not entries:
            return
        if not any(isinstance(result, Exception) for result in results):
            taken = self.clock() - started
            ratio = self.latency.observe(batch.decision.plan, len(entries), taken, batch.threads)
            self._prediction.observe(ratio)
        curious = self._settle(entries, results, batch.decision, started)
        if curious:
            await self._explain(curious, batch.decision.plan)

    def _settle(
        self,
        entries: Sequence[Entry],
        results: Sequence[Result | Exception],
        decision: Decision[Entry],
        started: float,
    ) -> Sequence[tuple[Entry, Outcome]]:
        """Hand every entry that still waits its answer or its failure.

        Returns the answers of those who asked for an explanation too, and get both together.
        """
        batch_s, plan = self.clock() - started, decision.plan
        self._compute_time.observe(batch_s)
        self._batch_size.observe(len(entries))
        curious = []
        for entry, result in zip(entries, results, strict=True):
            waited = started - entry.admitted_at
            self._queue_wait.observe(waited)
            if not entry.alive:
                continue
            if isinstance(result, FoveateError):
                entry.future.set_exception(result)
            elif isinstance(result, Exception):
                failure = RunFailed("the model failed on this request")
                failure.__cause__ = result
                entry.future.set_exception(failure)
            else:
                if result.features is not None and not entry.request.features:
                    result = replace(result, features=None)  # a third of a megabyte that nobody wants
                reason = "pinned" if entry.pinned else decision.reason
                outcome = Outcome(result, plan, Timings(waited, batch_s), len(entries), reason)
                if entry.request.explain:
                    curious.append((entry, outcome))
                else:
                    entry.future.set_result(outcome)
        return curious

    async def _explain(self, curious: Sequence[tuple[Entry, Outcome]], plan: Plan) -> None:
        """One more forward for those who asked, once the others of their batch have been answered."""
        explanations: Sequence[Explanation | None] = [None] * len(curious)
        if isinstance(self.runner, Explainer):
            media = [entry.request.media for entry, _ in curious]
            try:
                found = await self._compute.run(partial(self.runner.explain, media, plan))
                if len(found) != len(curious):
                    raise RunFailed(f"the model explained {len(found)} of {len(curious)} answers")
                explanations = found
            except Exception:  # the answer is there, and does not fail with its explanation
                log.warning("explaining %d answers failed", len(curious), exc_info=True)
        for (entry, outcome), explanation in zip(curious, explanations, strict=True):
            if entry.alive:
                result = replace(outcome.result, explanation=explanation)
                entry.future.set_result(replace(outcome, result=result))

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
        self._compute.close()
        self._stage.shutdown(wait=False, cancel_futures=True)
