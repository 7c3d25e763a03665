"""The chats of one model, as the device and the other models on it see them."""

import math
from collections.abc import Callable

import numpy as np

from foveate.core.errors import DeviceHung
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.scheduler import ChatScheduler
from foveate.engine.device import DeviceExecutor
from foveate.estimation.arrivals import ArrivalMeter
from foveate.scheduling.chat_costs import ChatCosts
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import PRIORITY_BOOST_S

RECENT_S = 1.0
"""For this long after its last call, a model still counts as a tenant that expects calls."""


class ChatTenant:
    """A `DeviceTenant` of the device. Each step of an answer takes a turn of its own."""

    def __init__(
        self,
        scheduler: ChatScheduler,
        costs: ChatCosts,
        device: DeviceExecutor,
        default_deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        """default_deadline_s: of calls without a deadline."""
        self.scheduler, self.costs, self.device = scheduler, costs, device
        self.default_deadline_s, self.clock = default_deadline_s, clock
        self.arrivals = ArrivalMeter(costs.usual_s(len(costs.rungs) - 1))

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
        latency, chat = self.costs.latency, entry.active
        start_s = latency.start_s(chat.plan, chat.load.pictures, chat.load.tokens)
        step_s = latency.step_s(chat.plan, len(self.scheduler.running))
        left_s = latency.safety_factor * (start_s + self.costs.remaining(chat).high * step_s)
        return entry.deadline - left_s - boost_s

    @property
    def demand(self) -> DeviceDemand:
        """The device time that the calls need which wait and run, and those that are expected."""
        now, scheduler, costs = self.clock(), self.scheduler, self.costs
        full = len(costs.rungs) - 1
        begun = [entry for entry in (*scheduler.staged, *scheduler.running) if not entry.over]
        if now - self.arrivals.last_at > RECENT_S and not begun and not len(scheduler.queue):
            return NO_DEMAND
        rows = [
            (each.virtual_deadline, each.deadline, costs.waiting_s(full, each), costs.waiting_s(0, each))
            for each in scheduler.queue
        ]
        for entry in begun:  # their plans are fixed, and other models run between their steps
            left_s = costs.active_s(entry.active)
            rows.append((self._due(entry), entry.deadline, left_s, left_s))
        virtual, deadlines, full_s, min_s = np.array(sorted(rows)).T if rows else np.empty((4, 0))
        arrivals = self.arrivals.read(now)
        return DeviceDemand(
            virtual, deadlines, full_s, min_s,
            arrivals.rate * costs.usual_s(full), arrivals.rate * costs.usual_s(0), arrivals.allowed_s,
        )  # fmt: skip

    def refuse_waiting(self, error: DeviceHung) -> None:
        """End the calls that have no token yet."""
        for entry in tuple(self.scheduler.queue):
            self.scheduler.queue.refuse(entry, error)
        for entry in self.scheduler.staged:
            entry.fail(error)
