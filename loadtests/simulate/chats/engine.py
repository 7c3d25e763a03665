"""One chat engine on a virtual clock.

Admission, queue, policy, scheduler, steps, caches, latency model and answer lengths are those of
`foveate.engine.chat`. Only what `ChatEngine` does with asyncio is written again: it waits for nothing here.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import cast

from foveate.core.chat import ChatCall, ChatPicture, SamplingOptions
from foveate.core.errors import DeadlineExceeded, FoveateError
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import DEFAULTS
from foveate.engine.chat.admission import ChatAdmission
from foveate.engine.chat.caches import ChatCaches, digest
from foveate.engine.chat.delivery import ChatDelivery
from foveate.engine.chat.entry import ChatEnd, ChatEntry
from foveate.engine.chat.meter import ChatMeter
from foveate.engine.chat.scheduler import ChatScheduler
from foveate.engine.chat.steps import ChatStep, StepResult, StepRunner
from foveate.engine.chat.tenant import ChatTenant
from foveate.engine.device import DeviceExecutor
from foveate.engine.queue import WaitingQueue
from foveate.estimation.answer_lengths import AnswerLengths
from foveate.estimation.chat_latency import ChatLatencyModel, ChatStage
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.chat_costs import ChatCosts
from foveate.scheduling.chat_policy import ChatPolicy, ChatPolicyFactory
from foveate.scheduling.chat_state import ChatDecision, ChatRefusal, ChatState, ChatT
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, virtual_deadline
from loadtests.simulate.chats.machine import ChatMachine
from loadtests.simulate.chats.model import PICTURE, SimulatedChatModel
from loadtests.simulate.chats.record import ChatSimulationRecord
from loadtests.simulate.chats.workload import ChatWorkload
from loadtests.simulate.record import End
from loadtests.simulate.workload import SimulatedRequest


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """The settings of the simulated server; their defaults are those of the real one."""

    slots: int = DEFAULTS["chat_slots"]
    max_batch: int = 8
    """Pictures that are encoded at once, at most."""
    max_items: int = DEFAULTS["queue_items"]
    """Largest number of waiting chats."""
    feature_bytes: int = DEFAULTS["chat_feature_bytes"]
    prefix_bytes: int = DEFAULTS["chat_prefix_bytes"]


ENDS: dict[ChatEnd, End] = {"refused": End.REFUSED, "expired": End.MISSED}


class TimedChatPolicy:
    """Counts the wall time of a policy's decisions."""

    def __init__(self, policy: ChatPolicy, record: ChatSimulationRecord) -> None:
        self.policy, self.record = policy, record

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """As the policy."""
        started = perf_counter()
        refusal = self.policy.admit(candidate, state)
        self._count(started)
        return refusal

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """As the policy."""
        started = perf_counter()
        decision = self.policy.choose(state)
        self._count(started)
        return decision

    def _count(self, started: float) -> None:
        self.record.deciding_s += perf_counter() - started
        self.record.decisions += 1


class SimulatedChatEngine:
    """Serves a workload on one simulated device."""

    def __init__(
        self,
        card: ModelCard,
        policy: ChatPolicyFactory,
        machine: ChatMachine,
        workload: ChatWorkload,
        record: ChatSimulationRecord,
        limits: ChatLimits,
        gap_s: float = 0.0,
    ) -> None:
        """card: its ladder are the rungs that the policy may choose. gap_s: idle time between two steps."""
        self.workload, self.record, self._machine, self._gap_s = workload, record, machine, gap_s
        self.now, self._arrived, self._changed = 0.0, 0, False
        self._at = workload.at.tolist()
        self._expiries: list[tuple[float, int, ChatEntry]] = []
        self.model = SimulatedChatModel(card, limits.slots, limits.max_batch, workload.chats, self._take)
        metrics, rungs = Metrics(), card.ladder
        self.lengths, self.latency = AnswerLengths(), ChatLatencyModel(rungs)
        costs = ChatCosts(rungs, self.latency, self.lengths, limits.slots)
        queue: WaitingQueue[ChatEntry] = WaitingQueue(limits.max_items, 2**62)
        self.caches = ChatCaches("simulated", limits.feature_bytes, limits.prefix_bytes, metrics)
        self.scheduler = ChatScheduler(
            self.model, TimedChatPolicy(policy(costs), record), queue, self.latency, self.caches, self.clock
        )
        self._device = DeviceExecutor(self.clock)
        self._tenant = ChatTenant(self.scheduler, costs, self._device, DEFAULT_DEADLINE_S, self.clock)
        self._admission = ChatAdmission(
            self.model, self.scheduler, self._tenant, HostLoadMonitor(), metrics.demand.labels(card.name),
            self.clock,
        )  # fmt: skip
        self._delivery = ChatDelivery(
            self.model, self.scheduler, ChatMeter(metrics, self.model, self.scheduler)
        )
        self._steps = StepRunner(self.model, self.clock)

    def clock(self) -> float:
        """Seconds of the virtual clock."""
        return self.now

    def run(self) -> None:
        """Serve all chats."""
        while self._arrived < len(self._at) or self.scheduler.has_work:
            self._pass_time(self._gap_s)
            self._changed = False
            step = self.scheduler.next_step(self._state) if self.scheduler.has_work else None
            if step is not None:
                self._run(step)
            elif not self._changed:  # a refusal may let another call start
                if self._next_event < math.inf:
                    self._pass_time(max(0.0, self._next_event - self.now))
                elif self.scheduler.has_work:
                    raise RuntimeError("calls wait, and nothing will let them start")

    def _run(self, step: ChatStep) -> None:
        """Run a step, and pass on what it gave."""
        predicted_s = self.latency.predict(step.stage, step.plan, step.size) if step.stage else 0.0
        self._device.set_busy(predicted_s)
        self._steps.interrupted, self.model.plan = False, step.plan
        deliver: Callable[[StepResult], None] = partial(self._deliver, step)
        deliver(self._steps.run(step, deliver))
        self._device.set_busy(0.0)

    def _deliver(self, step: ChatStep, result: StepResult) -> None:
        """Pass on a result."""
        first = [entry for entry in result.entries if not entry.generated]
        self._delivery.finish(step, result)
        for entry in first:
            if entry.generated:
                self.record.first_token_s[number_of(entry)] = result.at - entry.admitted_at
        if step.stage == "decode":
            self.record.batches += 1
            self.record.ran += len(result.entries)

    def _take(self, plan: Plan, stage: ChatStage, size: int) -> None:
        """Let the time of a step pass."""
        self._pass_time(self._machine.run(plan, stage, size))

    @property
    def _next_event(self) -> float:
        """When the next chat arrives, or the next deadline passes."""
        arrival = self._at[self._arrived] if self._arrived < len(self._at) else math.inf
        return min(arrival, self._expiries[0][0] if self._expiries else math.inf)

    def _pass_time(self, seconds: float) -> None:
        """Let time pass, with the arrivals and the deadlines in it."""
        until = self.now + seconds
        while self._next_event <= until:
            self.now = max(self.now, self._next_event)
            if self._expiries and self._expiries[0][0] <= self.now:
                entry = heapq.heappop(self._expiries)[2]
                entry.fail(DeadlineExceeded("the deadline passed before the answer was complete"))
            else:
                self._arrived += 1
                self._arrive(self._arrived - 1)
        self.now = until

    def _arrive(self, number: int) -> None:
        """Admit or refuse a chat."""
        try:
            entry = self._admission.admit(self._call(number), self._ids(number), False, self._state())
        except FoveateError:
            self.record.set_end(self._request(number), End.REFUSED)
            return
        entry.on_end = self._ended
        self.scheduler.queue.push(entry)
        if not math.isinf(entry.deadline):
            heapq.heappush(self._expiries, (entry.deadline, number, entry))
        self._steps.interrupted = True

    def _ended(self, entry: ChatEntry, end: ChatEnd) -> None:
        """A chat is over: as `ChatEngine` does, and record it."""
        self.scheduler.queue.remove(entry)
        complete, number = end in ("stop", "length"), number_of(entry)
        if complete or (end == "expired" and entry.generated):
            self.lengths.record(entry.generated)
        self._steps.interrupted = self._changed = True
        if complete:
            quality = self.model.card.quality_of(entry.plan) or 0.0
            self.record.set_answer(self._request(number), self.now, quality, entry.cached.tokens)
        else:
            self.record.set_end(self._request(number), ENDS[end])

    def _state(self) -> ChatState[ChatEntry]:
        """What runs and what waits now."""
        return ChatState(
            self.now, self._device.free_at, self.scheduler.active, tuple(self.scheduler.queue),
            self.scheduler.unused_slots, self._tenant.arrivals.read(self.now),
        )  # fmt: skip

    def _call(self, number: int) -> ChatCall:
        chat, at = self.workload.chats[number], self._at[number]
        picture = ChatPicture(digest(str(chat.picture)), None, 0)
        first_by = at + self.workload.first_token_s
        return ChatCall(
            str(number), self.model.card.name, (), (picture,), SamplingOptions(chat.max_tokens, seed=number),
            self._objective(number), None if math.isinf(first_by) else first_by,
        )  # fmt: skip

    def _objective(self, number: int) -> Objective:
        request_class = self.workload.classes[int(self.workload.class_index[number])]
        deadline = self._at[number] + request_class.slo_s
        return Objective(
            None if math.isinf(deadline) else deadline, request_class.min_quality, request_class.priority,
            request_class.tenant,
        )  # fmt: skip

    def _ids(self, number: int) -> list[int]:
        """The tokens of a chat: the picture precedes all texts, which are never shared."""
        return [PICTURE, *[0] * self.workload.chats[number].text_tokens]

    def _request(self, number: int) -> SimulatedRequest:
        at, objective = self._at[number], self._objective(number)
        deadline = math.inf if objective.deadline is None else objective.deadline
        order = virtual_deadline(objective, at)
        return SimulatedRequest(number, at, order, deadline, 0, objective.tenant)


def number_of(entry: ChatEntry) -> int:
    """The number of a chat."""
    return cast("int", entry.options.seed)
