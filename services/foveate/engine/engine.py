"""The engine loop of one model: admit -> take -> run -> settle."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from foveate.core.errors import DeadlineExceeded, Draining, FoveateError, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.core.request import Request
from foveate.engine.compute import Compute
from foveate.engine.policy import Decision, choose
from foveate.engine.queue import Entry, WaitingQueue
from foveate.engine.runner import Explainer, Runner

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """A decision on its way through the runner."""

    decision: Decision
    stacked: Any = None
    """The runner's input, where it was put together while another batch ran."""


class Engine:
    """Queue, loop and threads around one runner. Everything but `stack` and `run` is on the event loop.

    Engines of one device may share `compute`, the one thread that runs forwards.
    """

    def __init__(
        self,
        runner: Runner,
        metrics: Metrics,
        max_items: int = 256,
        max_bytes: int = 2**28,
        compute: Compute | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner, self.clock = runner, clock
        self.queue = WaitingQueue(max_items, max_bytes)
        self.draining = False
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._compute = compute or Compute()
        self._stage = ThreadPoolExecutor(1, "stage")
        self._in_flight: set[Entry] = set()
        self._batch_s = 0.0
        self._bind(metrics)

    def _bind(self, metrics: Metrics) -> None:
        """Resolve the metric children once; looking labels up costs more than counting."""
        name = self.runner.card.name
        self._queue_wait = metrics.queue_wait.labels(name)
        self._stack_time = metrics.stage.labels(name, "stack")
        self._compute_time = metrics.stage.labels(name, "compute")
        self._batch_size = metrics.batch_size.labels(name)
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
        plan = request.plan or self.card.full
        self.runner.check(plan)
        now = self.clock()
        left = None if request.objective.deadline is None else request.objective.deadline - now
        if left is not None and left <= 0:
            raise DeadlineExceeded("the deadline had passed before the request was admitted")
        self.queue.check_room(request.size_bytes, self._predicted_wait())
        loop = asyncio.get_running_loop()
        entry = Entry(request, plan, loop.create_future(), now)
        if left is not None:
            entry.expiry = loop.call_later(left, self._expire, entry)
        self.queue.push(entry)
        self._in_flight.add(entry)
        self._changed.set()
        return entry

    def _predicted_wait(self) -> float:
        """Seconds until what waits now has run, from the last batch's time."""
        return max(1.0, self._batch_s * (1 + len(self.queue) / self.runner.max_batch))

    def _expire(self, entry: Entry) -> None:
        if entry.alive:
            entry.future.set_exception(DeadlineExceeded("the deadline passed before the answer was ready"))
        self.queue.remove(entry)

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
            batch = Batch(await self._take())
            if self._running is not None and not self._running.done():
                await self._stage_ahead(batch)
                await self._running
            self._running = asyncio.create_task(self._run(batch))

    async def _take(self) -> Decision:
        """Wait for work that should be bound now.

        While a batch runs, only a full one is bound ahead: anything less would miss those who come
        until the runner is free.
        """
        while True:
            self._changed.clear()
            decision = choose(self.queue, self.runner.max_batch)
            idle = self._running is None or self._running.done()
            if decision is not None and (idle or decision.full):
                for entry in decision.entries:
                    self.queue.remove(entry)
                return decision
            await self._changed.wait()

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
        async with self._compute.turn:
            entries = [entry for entry in batch.decision.entries if entry.alive]
            if len(entries) < len(batch.decision.entries):
                batch.stacked = None  # somebody left after staging: their rows must not reach the forward
            if entries:
                await self._forward(entries, batch)
        self._changed.set()

    async def _forward(self, entries: Sequence[Entry], batch: Batch) -> None:
        started = self.clock()
        self._running_gauge.set(len(entries))
        try:
            results = await self._compute.run(partial(self._compute_batch, entries, batch))
        except Exception:  # whatever it was, it ends these requests and not the loop
            log.exception("the compute thread failed")
            results = [RunFailed("the model failed on this request")] * len(entries)
        finally:
            self._running_gauge.set(0)
        curious = self._settle(entries, results, batch.decision.plan, started)
        if curious:
            await self._explain(curious, batch.decision.plan)

    def _compute_batch(self, entries: Sequence[Entry], batch: Batch) -> Sequence[Result | Exception]:
        """On the compute thread: one forward; if it fails as a whole, each item gets its own."""
        plan, stacked = batch.decision.plan, batch.stacked
        try:
            if stacked is None:
                stacked = self.runner.stack([entry.request.media for entry in entries], plan)
            results = self.runner.run(stacked, plan)
            if len(results) != len(entries):
                raise RunFailed(f"the model gave {len(results)} results for {len(entries)} requests")
            return results
        except Exception as error:
            log.warning("a batch of %d failed", len(entries), exc_info=True)
            if len(entries) == 1:
                return [error]
            return [self._compute_alone(entry, batch.decision) for entry in entries]

    def _compute_alone(self, entry: Entry, decision: Decision) -> Result | Exception:
        """On the compute thread, after its batch failed: a forward of its own, if anybody still waits."""
        if not entry.alive:
            return RunFailed("nobody waits for this request")
        return self._compute_batch([entry], Batch(decision))[0]

    def _settle(
        self, entries: Sequence[Entry], results: Sequence[Result | Exception], plan: Plan, started: float
    ) -> Sequence[tuple[Entry, Outcome]]:
        """Hand every entry that still waits its answer or its failure.

        Returns the answers of those who asked for an explanation too, and get both together.
        """
        self._batch_s = self.clock() - started
        self._compute_time.observe(self._batch_s)
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
                outcome = Outcome(result, plan, Timings(waited, self._batch_s), len(entries))
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
