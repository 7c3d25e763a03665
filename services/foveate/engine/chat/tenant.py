"""The chats of one model, as the device and the other models on it see them."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from foveate.core.errors import DeviceHung
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.scheduler import ChatScheduler
from foveate.engine.device import DeviceExecutor
from foveate.estimation.answer_lengths import AnswerLengths
from foveate.estimation.arrivals import ArrivalMeter
from foveate.estimation.chat_latency import ChatLatencyModel
from foveate.scheduling.chat_state import CallLoad
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import PRIORITY_BOOST_S

RECENT_S = 1.0
"""For this long after its last call, a model still counts as a tenant that expects calls."""
USUAL_TOKENS = 64
"""Tokens that a call allows where it is not known."""


class ChatTenant:
    """A `DeviceTenant` of the device. Each step of an answer takes a turn of its own."""

    def __init__(
        self,
        scheduler: ChatScheduler,
        lengths: AnswerLengths,
        latency: ChatLatencyModel,
        rungs: Sequence[Rung],
        device: DeviceExecutor,
        default_deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        """rungs: cheapest first, the last is full; default_deadline_s: of calls without a deadline."""
        self.scheduler, self.lengths, self.latency, self.rungs = scheduler, lengths, latency, rungs
        self.device, self.default_deadline_s, self.clock = device, default_deadline_s, clock
        self.arrivals = ArrivalMeter(self.usual_s(len(rungs) - 1))

    def call_s(self, entry: ChatEntry, rung: int) -> float:
        """Device seconds of a call at a rung, or under the plan that it pins."""
        plan = entry.pinned or self.rungs[rung].plan
        return self._seconds(plan, entry.load(plan), self.lengths.mean(entry.max_tokens))

    def left_s(self, entry: ChatEntry) -> float:
        """Device seconds of what is left of a call under its plan."""
        tokens = max(1.0, self.lengths.mean(entry.max_tokens, entry.generated) - entry.generated)
        return self._seconds(entry.plan, CallLoad(len(entry.missing), entry.left_tokens), tokens)

    def full_s(self, entry: ChatEntry) -> float:
        """Device seconds of a call at full, whatever it pins: its full-quality demand."""
        plan = self.rungs[-1].plan
        return self._seconds(plan, entry.load(plan), self.lengths.mean(entry.max_tokens))

    def usual_s(self, rung: int) -> float:
        """Device seconds of a short question about a picture at a rung: of a call that is not known."""
        plan, tokens = self.rungs[rung].plan, self.rungs[rung].tokens
        return self._seconds(plan, CallLoad(1, tokens), self.lengths.mean(USUAL_TOKENS))

    def _seconds(self, plan: Plan, load: CallLoad, tokens: float) -> float:
        """Device seconds of a call with so many tokens to generate, where all slots are in use."""
        slots = self.scheduler.model.slots
        step_s = self.latency.step_s(plan, slots) / slots
        return self.latency.start_s(plan, load.pictures, load.tokens) + tokens * step_s

    @property
    def virtual_deadline(self) -> float:
        """By when the next step should begin; clock seconds, infinite if there is none.

        A token is due as late as the rest of its answer allows. An answer without a deadline asks for each
        token as a request without a deadline would, and lets others go first after each of its steps: it
        neither starves others nor is starved by them.
        """
        scheduler, yields = self.scheduler, self.device.last_tenant is self
        waiting = scheduler.queue[:1] if scheduler.unused_slots else []
        begun = [
            self._due(entry)
            for entry in (*scheduler.staged, *scheduler.running)
            if not (yields and entry.generated and math.isinf(entry.deadline))
        ]
        return min((*(entry.virtual_deadline for entry in waiting), *begun), default=math.inf)

    def _due(self, entry: ChatEntry) -> float:
        """By when the next step of a call should begin; clock seconds."""
        boost_s = PRIORITY_BOOST_S * entry.call.objective.priority
        if math.isinf(entry.deadline):
            return entry.last_token_at + self.default_deadline_s - boost_s
        left = self.lengths.high(entry.max_tokens, entry.generated) - entry.generated
        load_s = self.latency.start_s(entry.plan, len(entry.missing), entry.left_tokens)
        step_s = self.latency.step_s(entry.plan, len(self.scheduler.running))
        return entry.deadline - self.latency.safety_factor * (load_s + max(1, left) * step_s) - boost_s

    @property
    def demand(self) -> DeviceDemand:
        """The device time that the calls need which wait and run, and those that are expected."""
        now, full = self.clock(), len(self.rungs) - 1
        scheduler = self.scheduler
        begun = [entry for entry in (*scheduler.staged, *scheduler.running) if not entry.over]
        if now - self.arrivals.last_at > RECENT_S and not begun and not len(scheduler.queue):
            return NO_DEMAND
        rows = [
            (each.virtual_deadline, each.deadline, self.call_s(each, full), self.call_s(each, each.min_rung))
            for each in scheduler.queue
        ]
        for entry in begun:  # their plans are fixed, and other models run between their steps
            left_s = self.left_s(entry)
            rows.append((self._due(entry), entry.deadline, left_s, left_s))
        virtual, deadlines, full_s, min_s = np.array(sorted(rows)).T if rows else np.empty((4, 0))
        arrivals = self.arrivals.read(now)
        return DeviceDemand(
            virtual, deadlines, full_s, min_s,
            arrivals.rate * self.usual_s(full), arrivals.rate * self.usual_s(0), arrivals.allowed_s,
        )  # fmt: skip

    def refuse_waiting(self, error: DeviceHung) -> None:
        """End the calls that have no token yet."""
        for entry in tuple(self.scheduler.queue):
            self.scheduler.queue.refuse(entry, error)
        for entry in self.scheduler.staged:
            entry.fail(error)
