"""The engine of one model: admit requests, choose a batch, run it, settle its requests."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, Unpack

from foveate.core.errors import DeadlineExceeded, Draining, RunFailed, TooLate
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.core.settings import DEFAULTS
from foveate.engine.admission import QueueAdmission
from foveate.engine.backlog import Backlog
from foveate.engine.batch import ScheduledBatch
from foveate.engine.device import DeviceExecutor
from foveate.engine.embedding import SubmitOptions, embedded_request
from foveate.engine.executor import BatchExecutor
from foveate.engine.idle_warmup import IdleWarmup
from foveate.engine.queue import QueueEntry, WaitingQueue
from foveate.engine.runner import HasThreads, HasWarmup, Runner
from foveate.estimation.host_load import CpuLoad, HostLoadMonitor
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, BatchDecision, PolicyFactory, pareto_rungs
from foveate.scheduling.slo_policy import SloPolicy

log = logging.getLogger(__name__)


class Engine:
    """Queue, loop and threads around one runner.

    All of it runs on the event loop except the runner's `stack` and `run`. Engines of several models may
    share one device. An application of your own embeds it with `async with Engine(runner) as engine`, which
    starts it, and finishes what was submitted at the end.
    """

    def __init__(
        self,
        runner: Runner,
        metrics: Metrics | None = None,
        max_items: int = DEFAULTS["queue_items"],
        max_bytes: int = DEFAULTS["queue_bytes"],
        device: DeviceExecutor | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: PolicyFactory = SloPolicy,
        default_deadline_s: float = DEFAULT_DEADLINE_S,
        host_load: HostLoadMonitor | None = None,
    ) -> None:
        """metrics: None for metrics of its own. max_items, max_bytes: capacity of the queue. clock: the clock
        of the deadlines, in seconds."""
        self.runner, self.clock = runner, clock
        self.metrics = metrics = metrics or Metrics()
        self.host_load = host_load or HostLoadMonitor()
        self.latency = ThreadSelector(
            runner.card.ladder, runner.times if isinstance(runner, HasThreads) else {}
        )
        warmup = runner.warmup if isinstance(runner, HasWarmup) else None
        if warmup is not None:
            self.latency.set_warm(warmup.warm)
        rungs = pareto_rungs(runner.card)
        self.policy = policy(rungs, self.latency, runner.max_batch)
        self.queue: WaitingQueue[QueueEntry] = WaitingQueue(max_items, max_bytes)
        self.draining = False
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._running = False
        self._device = device or DeviceExecutor()
        self.backlog = Backlog(self.queue, self.latency, rungs, runner.max_batch, self._device, clock)
        self._executor = BatchExecutor(runner, self.latency, self._device, metrics, clock)
        name = runner.card.name
        self._admission = QueueAdmission(
            runner, self.policy, self.backlog, self.host_load, metrics.demand.labels(name),
            default_deadline_s, clock,
        )  # fmt: skip
        self._idle_warmup = IdleWarmup(
            warmup, self.latency, self.backlog, self._device, self.host_load, metrics.warm_ratio.labels(name)
        )
        metrics.waiting.labels(name).set_function(lambda: len(self.queue))
        metrics.waiting_bytes.labels(name).set_function(lambda: self.queue.bytes)
        metrics.oldest_wait.labels(name).set_function(lambda: self.backlog.oldest_wait_s)
        metrics.hanging.labels(name).set_function(lambda: self._device.hangs.count(name))

    @property
    def card(self) -> ModelCard:
        """The card of the runner."""
        return self.runner.card

    @property
    def serving(self) -> bool:
        """True while the loop runs: after `start`, until `close` or a failure of the loop."""
        return self._loop is not None and not self._loop.done()

    @property
    def busy(self) -> bool:
        """True if an admitted request has no outcome yet, or if a batch still runs for clients that left.

        After a batch was given up as lost, only requests without an outcome count.
        """
        batch = self._running or self.backlog.prefetched is not None
        return bool(self.backlog.unfinished) or (batch and not self._device.hangs.lost)

    @property
    def unfinished(self) -> int:
        """Admitted requests without an outcome."""
        return len(self.backlog.unfinished)

    @property
    def queue_wait_s(self) -> float:
        """Seconds until the queue has run, each request on the cheapest plan that it accepts."""
        return self.backlog.wait_s()

    def start(self) -> None:
        """Start the loop on the running event loop."""
        self._device.add_tenant(self.backlog)
        self._loop = asyncio.create_task(self._serve(), name=f"engine-{self.card.name}")
        self._loop.add_done_callback(self._loop_ended)
        self._idle_warmup.start(self.card.name)

    async def __aenter__(self) -> Self:
        """Start the engine."""
        self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the requests that were submitted, unless an error ends the block; then close the engine."""
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        """If the loop failed, fail all unfinished requests and admit no more."""
        if loop.cancelled() or loop.exception() is None:
            return
        log.critical("the engine of %s failed", self.card.name, exc_info=loop.exception())
        self.draining, self.backlog.prefetched = True, None
        for entry in list(self.backlog.unfinished):
            self.queue.refuse(entry, RunFailed("the server failed on this request"))

    def reserve(self, objective: Objective, plan: Plan | None, ready_in_s: float) -> None:
        """Accept a request whose media will be decoded in `ready_in_s` seconds, or refuse it.

        Nothing has been decoded yet, so a refusal costs little. Raises BadPlan, DeadlineExceeded, DeviceHung,
        TooLate.
        """
        self._device.hangs.check()
        self._admission.reserve(objective, plan, ready_in_s)

    def count_refused(self, allowed_s: float) -> None:
        """Count a request that a gateway has refused because of `queue_wait_s`: it is demand too.

        allowed_s: seconds that the request allowed.
        """
        self._admission.count_refused(allowed_s)

    async def submit(
        self, media: Request | Any, reserved: bool = False, **options: Unpack[SubmitOptions]
    ) -> Outcome:
        """Admit a request and wait for its outcome. If the caller is cancelled, the request is dropped.

        media: the input of the runner, with its `options`, or a `Request`, which says the rest itself.
        reserved: `reserve` has counted this request as an arrival. Raises BadRequest for options out of
        range, the errors of `admit`, TooLate and DeadlineExceeded while the request waits, and RunFailed.
        """
        whole = isinstance(media, Request)
        request = media if whole else embedded_request(self.card, media, self.clock(), options)
        entry = self.admit(request, reserved)
        try:
            return await entry.future
        finally:
            self._drop(entry)

    def admit(self, request: Request, reserved: bool = False) -> QueueEntry:
        """Put a request into the queue.

        Raises BadPlan, DeadlineExceeded, DeviceHung, Draining, Overloaded, TooLate.
        """
        if self.draining:
            raise Draining("the server is shutting down; send the request to another one")
        self._device.hangs.check()
        entry = self._admission.admit(request, reserved)
        if not math.isinf(entry.deadline):
            delay_s = entry.deadline - entry.admitted_at
            entry.expiry = asyncio.get_running_loop().call_later(delay_s, self._expire, entry)
        self.queue.push(entry)
        self.backlog.unfinished.add(entry)
        self._changed.set()
        return entry

    def _expire(self, entry: QueueEntry) -> None:
        self.queue.refuse(entry, DeadlineExceeded("the deadline passed before the answer was ready"))

    def _drop(self, entry: QueueEntry) -> None:
        """Release everything that is held for a request that is over."""
        if entry.expiry is not None:
            entry.expiry.cancel()
        self.queue.remove(entry)
        self.backlog.unfinished.discard(entry)
        if self.draining:
            self._changed.set()

    async def _serve(self) -> None:
        """The whole engine: wait for requests and for the device, choose a batch, run it."""
        while True:
            await self._wait_for_requests()
            async with self._device.turn(self.backlog):
                batch, self.backlog.prefetched = self.backlog.prefetched or self._form_batch(), None
                if batch is not None:
                    await self._run(batch)

    async def _wait_for_requests(self) -> None:
        """Return once a staged batch is ready or a request waits."""
        if self.backlog.prefetched is not None and self.backlog.prefetched.staging is not None:
            await self.backlog.prefetched.staging
        while self.backlog.prefetched is None and not len(self.queue):
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, batch: ScheduledBatch) -> None:
        """Run a batch, and prefetch the next one while it runs."""
        self._device.set_busy(batch.predicted_s)
        self._running = True
        running = asyncio.create_task(self._executor.run(batch), name=f"batch-{self.card.name}")
        running.add_done_callback(lambda _: self._changed.set())
        try:
            while self.backlog.prefetched is None and not running.done():
                self._changed.clear()
                self._prefetch()
                await self._changed.wait()
        finally:
            await running
            self._running = False
            self._changed.set()  # for `drain`

    def _prefetch(self) -> None:
        """Choose and stage the next batch early, if it is full and no other model waits for the device.

        A batch that is not full would miss the requests that arrive until the device is free. A request to
        another model may have an earlier deadline.
        """
        if self.backlog.full_batch_waits and not self._device.contended(self.backlog):
            batch = self.backlog.prefetched = self._form_batch(full_only=True)
            if batch is not None:
                batch.staging = asyncio.create_task(self._executor.stage(batch))

    def _form_batch(self, full_only: bool = False) -> ScheduledBatch | None:
        """Take the next batch out of the queue; full_only: only if no further request could join it."""
        decision = self._decide()
        if decision is None or not decision.entries or (full_only and not decision.full):
            return None
        for entry in decision.entries:
            self.queue.remove(entry)
        predicted_s = self.latency.predict(decision.plan, len(decision.entries))
        return ScheduledBatch(decision, self.latency.threads(decision.plan), predicted_s)

    def _decide(self) -> BatchDecision[QueueEntry] | None:
        """Ask the policy for the next batch, and refuse the requests that it cannot serve in time."""
        backlog, now = self.backlog, self.clock()
        preparing = self.host_load.pending_for(self.card.name)
        arrivals = replace(backlog.arrivals.read(now), preparing=preparing)
        # The decoding of a lone request is over: it is no load during its forward.
        alone = (
            len(backlog.unfinished) == 1
            and not self.host_load.pending
            and not self._device.contended(backlog)
        )
        self.latency.set_cpu_load(CpuLoad() if alone else self.host_load.load)
        decision = self.policy.choose(self.queue, now, backlog.free_at, arrivals, backlog.other_demand)
        if decision is not None and decision.refused:
            error = TooLate("there is no time left to answer by the deadline", backlog.wait_s())
            for entry in decision.refused:
                self.queue.refuse(entry, error)
        return decision

    async def drain(self) -> None:
        """Refuse new requests. Return once every admitted request has its outcome and no batch runs."""
        self.draining = True
        self._idle_warmup.stop()
        while self.busy:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Stop the loop and fail all unfinished requests with Draining."""
        self.draining = True
        if self._loop is not None:
            self._loop.cancel()
        self._idle_warmup.stop()
        for entry in self.backlog.unfinished:
            entry.fail(Draining("the server shut down before the request was complete"))
        self._device.remove_tenant(self.backlog)
        self._device.close()
        self._executor.close()
