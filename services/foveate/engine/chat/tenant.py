"""The chats of one model, as the device and the other models on it see them."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from foveate.core.errors import DeviceHung
from foveate.core.model import Rung
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
        self.arrivals = ArrivalMeter(self.full_s)

    def call_s(self, entry: ChatEntry, rung: int, *, left_only: bool = False) -> float:
        """Device seconds of a call at a rung, or of what is left of it under its plan."""
        plan = entry.plan if left_only else entry.pinned or self.rungs[rung].plan
        if left_only:
            load, done = CallLoad(len(entry.missing), entry.left_tokens), entry.generated
        else:
            load, done = entry.load(plan), 0
        tokens = max(1.0, self.lengths.mean(entry.max_tokens, done) - done)
        return self.latency.start_s(plan, load.pictures, load.tokens) + tokens * self._token_s(rung)

    def usual_s(self, rung: int) -> float:
        """Device seconds of a short question about a picture at a rung."""
        plan, tokens = self.rungs[rung].plan, self.rungs[rung].tokens
        start_s = self.latency.start_s(plan, 1, tokens)
        return start_s + self.lengths.mean(USUAL_TOKENS) * self._token_s(rung)

    @property
    def full_s(self) -> float:
        """Device seconds of a short question about a picture at full: what full-quality demand counts."""
        return self.usual_s(len(self.rungs) - 1)

    def _token_s(self, rung: int) -> float:
        slots = self.scheduler.model.slots
        return self.latency.step_s(self.rungs[rung].plan, slots) / slots

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
            left_s = self.call_s(entry, full, left_only=True)
            rows.append((self._due(entry), entry.deadline, left_s, left_s))
        virtual, deadlines, full_s, min_s = np.array(sorted(rows)).T if rows else np.empty((4, 0))
        arrivals = self.arrivals.read(now)
        return DeviceDemand(
            virtual, deadlines, full_s, min_s,
            arrivals.rate * self.full_s, arrivals.rate * self.usual_s(0), arrivals.allowed_s,
        )  # fmt: skip

    def refuse_waiting(self, error: DeviceHung) -> None:
        """End the calls that have no token yet."""
        for entry in tuple(self.scheduler.queue):
            self.scheduler.queue.refuse(entry, error)
        for entry in self.scheduler.staged:
            entry.fail(error)
