"""The engine of one vision-language model: admit calls, choose the next step, run it, pass its tokens on."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from foveate.core.chat import ChatCall, ChatEnded, ChatEvent
from foveate.core.errors import DeadlineExceeded, Draining, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import DEFAULTS
from foveate.engine.chat.admission import ChatAdmission
from foveate.engine.chat.caches import ChatCaches
from foveate.engine.chat.delivery import ChatDelivery
from foveate.engine.chat.entry import ChatEnd, ChatEntry
from foveate.engine.chat.meter import ChatMeter
from foveate.engine.chat.runner import ChatModel
from foveate.engine.chat.scheduler import ChatScheduler
from foveate.engine.chat.steps import ChatStep, StepResult, StepRunner
from foveate.engine.chat.tenant import ChatTenant
from foveate.engine.device import DeviceExecutor
from foveate.engine.hang import DeviceWork, WorkKind
from foveate.engine.queue import WaitingQueue
from foveate.estimation.answer_lengths import AnswerLengths
from foveate.estimation.chat_latency import ChatLatencyModel, ChatStage
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.chat_costs import ChatCosts
from foveate.scheduling.chat_policy import ChatPolicyFactory, ChatSloPolicy
from foveate.scheduling.chat_state import ChatState
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, pareto_rungs

log = logging.getLogger(__name__)

KINDS: dict[ChatStage | None, WorkKind] = {
    "encode": "encoding", "prefill": "prefill", "decode": "decoding step", None: "decoding step",
}  # fmt: skip


class ChatEngine:
    """Queue, scheduler, loop and caches around one vision-language model.

    All of it runs on the event loop, except for the model's steps on the device's thread, and reading the
    texts of calls on threads of its own. Engines of several models may share one device.
    """

    def __init__(
        self,
        model: ChatModel,
        metrics: Metrics | None = None,
        max_items: int = DEFAULTS["queue_items"],
        max_bytes: int = DEFAULTS["queue_bytes"],
        device: DeviceExecutor | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: ChatPolicyFactory = ChatSloPolicy,
        default_deadline_s: float = DEFAULT_DEADLINE_S,
        host_load: HostLoadMonitor | None = None,
        feature_bytes: int = DEFAULTS["chat_feature_bytes"],
        prefix_bytes: int = DEFAULTS["chat_prefix_bytes"],
    ) -> None:
        """As of `Engine`. feature_bytes, prefix_bytes: bounds of the caches of pictures and of prompts."""
        self.model, self.clock = model, clock
        metrics = metrics or Metrics()
        rungs = pareto_rungs(model.card)
        self.lengths, self.latency = AnswerLengths(), ChatLatencyModel(rungs)
        self.costs = ChatCosts(rungs, self.latency, self.lengths, model.slots)
        self.policy = policy(self.costs)
        self.queue: WaitingQueue[ChatEntry] = WaitingQueue(max_items, max_bytes)
        self.caches = ChatCaches(model.card.weights, feature_bytes, prefix_bytes, metrics)
        self.scheduler = ChatScheduler(model, self.policy, self.queue, self.latency, self.caches, clock)
        self.draining = False
        self.admitted: set[ChatEntry] = set()
        """Admitted calls that are not over."""
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._running = False
        self._device = device or DeviceExecutor()
        self._steps = StepRunner(model, clock, lambda: self._device.has_waiters)
        self.tenant = ChatTenant(self.scheduler, self.costs, self._device, default_deadline_s, clock)
        self._host_load = host_load or HostLoadMonitor()
        name = model.card.name
        self._admission = ChatAdmission(
            model, self.scheduler, self.tenant, self._host_load, metrics.demand.labels(name), clock
        )
        self._meter = ChatMeter(metrics, model, self.scheduler)
        self._delivery = ChatDelivery(model, self.scheduler, self._meter)
        self._hangs = metrics.hangs
        metrics.hanging.labels(name).set_function(lambda: self._device.hangs.count(name))
        metrics.oldest_wait.labels(name).set_function(self._oldest_wait_s)
        # Schemas take up to seconds to compile: other calls do not wait for them.
        self._readers = ThreadPoolExecutor(1, "tokenize"), ThreadPoolExecutor(1, "compile")

    @property
    def card(self) -> ModelCard:
        """The card of the model."""
        return self.model.card

    @property
    def serving(self) -> bool:
        """True while the loop runs: after `start`, until `close` or a failure of the loop."""
        return self._loop is not None and not self._loop.done()

    @property
    def busy(self) -> bool:
        """True if an admitted call is not over, or if a step still runs for clients that left."""
        return bool(self.admitted) or (self._running and not self._device.hangs.lost)

    @property
    def unfinished(self) -> int:
        """Admitted calls that are not over."""
        return len(self.admitted)

    @property
    def queue_wait_s(self) -> float:
        """Seconds until a further call could start, those ahead on the cheapest plans that they accept."""
        return self.costs.start_wait_s(self._state())

    def _oldest_wait_s(self) -> float:
        waiting = [entry.admitted_at for entry in (*self.queue, *self.scheduler.staged) if not entry.over]
        return max(0.0, self.clock() - min(waiting)) if waiting else 0.0

    def start(self) -> None:
        """Start the loop on the running event loop."""
        self._device.add_tenant(self.tenant)
        self._loop = asyncio.create_task(self._serve(), name=f"chat-engine-{self.card.name}")
        self._loop.add_done_callback(self._loop_ended)

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        """If the loop failed, fail all calls and admit no more."""
        if loop.cancelled() or loop.exception() is None:
            return
        log.critical("the engine of %s failed", self.card.name, exc_info=loop.exception())
        self.draining = True
        for entry in list(self.admitted):
            entry.fail(RunFailed("the server failed on this request"))

    def reserve(
        self, objective: Objective, plan: Plan | None, ready_in_s: float, call: ChatCall | None = None
    ) -> None:
        """Accept a call whose pictures will be decoded in `ready_in_s` seconds, or refuse it.

        call: what is known of it, without pixels. Raises BadPlan, DeadlineExceeded, DeviceHung, TooLate.
        """
        self._device.hangs.check()
        self._admission.reserve(objective, plan, ready_in_s, call, self._state())

    def count_refused(self, allowed_s: float) -> None:
        """Count a call that a gateway has refused because of `queue_wait_s`: it is demand too."""
        self._admission.count(self.clock(), allowed_s)

    async def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        """Answer a call. Closing the iterator, or cancelling its consumer, cancels the answer.

        reserved: `reserve` has counted this call as an arrival. Raises BadRequest, the errors of `reserve`,
        Draining and Overloaded before the first event; RunFailed and DeadlineExceeded in the place of any.
        """
        entry = await self._admit(call, reserved)
        try:
            while True:
                event = await entry.next_event()
                yield event
                if isinstance(event, ChatEnded):
                    return
        finally:
            entry.end(None, "cancelled")

    async def _admit(self, call: ChatCall, reserved: bool) -> ChatEntry:
        """Put a call into the queue."""
        self._check_open()
        read = partial(self.model.read, call.turns, call.options)
        reader = self._readers[bool(call.options.json_schema)]
        ids = await asyncio.get_running_loop().run_in_executor(reader, read)
        self._check_open()
        entry = self._admission.admit(call, ids, reserved, self._state())
        if not math.isinf(entry.deadline):
            delay_s = entry.deadline - entry.admitted_at
            entry.expiry = asyncio.get_running_loop().call_later(delay_s, self._expire, entry)
        entry.on_end = self._ended
        self.queue.push(entry)
        self.admitted.add(entry)
        self._wake()
        return entry

    def _wake(self) -> None:
        """Let the scheduler decide anew: after the step that runs, or now."""
        self._steps.interrupted = True
        self._changed.set()

    def _check_open(self) -> None:
        if self.draining:
            raise Draining("the server is shutting down; send the request to another one")
        self._device.hangs.check()

    def _expire(self, entry: ChatEntry) -> None:
        entry.fail(DeadlineExceeded("the deadline passed before the answer was complete"))

    def _ended(self, entry: ChatEntry, end: ChatEnd) -> None:
        """A call is over: count it once, and let the loop free its slot."""
        self.queue.remove(entry)
        self.admitted.discard(entry)
        complete = end in ("stop", "length")
        self._meter.end(end, entry.generated if complete else 0)
        if complete or (end == "expired" and entry.generated):
            self.lengths.record(entry.generated)  # an answer that expired is at least as long
        self._wake()

    def _state(self) -> ChatState[ChatEntry]:
        """What runs and what waits now."""
        now = self.clock()
        preparing = self._host_load.pending_for(self.card.name)  # their pictures are being decoded
        return ChatState(
            now, self._device.free_at, self.scheduler.active, tuple(self.queue), self.scheduler.unused_slots,
            replace(self.tenant.arrivals.read(now), preparing=preparing),
            self._device.demand_besides(self.tenant),
        )  # fmt: skip

    async def _serve(self) -> None:
        """The whole engine: wait for calls and for the device, choose a step, run it."""
        while True:
            while not self.scheduler.has_work:
                self._changed.clear()
                await self._changed.wait()
            async with self._device.turn(self.tenant):
                self._changed.clear()
                step = self.scheduler.next_step(self._state)
                if step is not None:
                    await self._run(step)
            if step is None:
                await self._changed.wait()  # no call can start, or some were refused, which sets it
            self._changed.set()  # for `drain`

    async def _run(self, step: ChatStep) -> None:
        """Run a step, learn from its time, and pass on what it gave."""
        name, stage = self.card.name, step.stage
        predicted_s = self.latency.predict(stage, step.plan, step.size) if stage else 0.0
        self._device.set_busy(predicted_s)
        # If the step fails, its parts run one after the other.
        work = DeviceWork(
            name, step.plan, step.size, predicted_s * max(step.repeats, len(step.entries)), KINDS[stage],
            partial(self._on_hang, step),
        )  # fmt: skip
        self._running, self._steps.interrupted = True, False
        loop = asyncio.get_running_loop()

        def deliver(result: StepResult) -> None:
            loop.call_soon_threadsafe(self._delivery.finish, step, result)

        try:
            with self._device.hangs.watch(work):
                result = await self._device.run(partial(self._steps.run, step, deliver))
        except (Exception, SystemExit):  # a library of the model may call sys.exit
            log.exception("a step of %d failed", step.size)
            for entry in step.entries:
                entry.fail(RunFailed("the model failed on this request"))
            return
        finally:
            self._running = False
        self._delivery.finish(step, result)

    def _on_hang(self, step: ChatStep, work: DeviceWork) -> None:
        if work.state == "lost":
            for entry in step.holding:
                entry.fail(RunFailed("the model did not finish this request; the server has given it up"))
        else:
            known = self.card.rung(step.plan) is not None
            rung = step.plan.relative_to(self.card.full) if known else "other"
            self._hangs.labels(work.model, rung).inc()

    async def drain(self) -> None:
        """Refuse new calls. Return once every admitted call is over and no step runs."""
        self.draining = True
        while self.busy:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Stop the loop and fail all calls with Draining."""
        self.draining = True
        if self._loop is not None:
            self._loop.cancel()
        for entry in list(self.admitted):
            entry.fail(Draining("the server shut down before the request was complete"))
        self._device.remove_tenant(self.tenant)
        self._device.close()
        for reader in self._readers:
            reader.shutdown(wait=False, cancel_futures=True)
