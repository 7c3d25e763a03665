"""The unfinished requests of one model, and the device time that they are predicted to need."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from foveate.core.errors import DeviceHung
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.engine.batch import ScheduledBatch
from foveate.engine.device import DeviceExecutor
from foveate.engine.queue import QueueEntry, WaitingQueue
from foveate.estimation.arrivals import ArrivalMeter
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand

RECENT_S = 1.0
"""For this long after its last request, a model still counts as a tenant that expects requests."""


class Backlog:
    """The queue and the prefetched batch of one model. A `DeviceTenant` of the device."""

    def __init__(
        self,
        queue: WaitingQueue[QueueEntry],
        latency: ThreadSelector,
        rungs: Sequence[Rung],
        max_batch: int,
        device: DeviceExecutor,
        clock: Callable[[], float],
    ) -> None:
        """rungs: those that the policy may choose, cheapest first, the last is full."""
        self.queue, self.latency, self.rungs, self.max_batch = queue, latency, rungs, max_batch
        self.device, self.clock = device, clock
        self.arrivals = ArrivalMeter(latency.predict(rungs[-1].plan, 1))
        self.unfinished: set[QueueEntry] = set()
        """Admitted requests without an outcome: queued, prefetched or running."""
        self.prefetched: ScheduledBatch | None = None
        """The batch that runs next, if it has been chosen already."""

    def request_s(self, plan: Plan) -> float:
        """Predicted device seconds of a request in a batch of efficient size."""
        size = self.latency.efficient_batch_size(plan, self.max_batch)
        return self.latency.predict(plan, size) / size

    @property
    def full_batch_waits(self) -> bool:
        """True if enough requests wait for an efficient batch at full."""
        return len(self.queue) >= self.latency.efficient_batch_size(self.rungs[-1].plan, self.max_batch)

    @property
    def free_at(self) -> float:
        """When the running and the prefetched batch are predicted to be done; clock seconds."""
        return self.device.free_at + (self.prefetched.predicted_s if self.prefetched else 0.0)

    @property
    def other_demand(self) -> DeviceDemand:
        """The demand of the other models of the device."""
        return self.device.demand_besides(self)

    def wait_s(self) -> float:
        """Seconds until the queue has run, each request on the cheapest plan that it accepts."""
        item_s = [self.latency.item_s(rung.plan) for rung in self.rungs]
        return max(0.0, self.free_at - self.clock()) + sum(item_s[entry.min_rung] for entry in self.queue)

    @property
    def oldest_wait_s(self) -> float:
        """Seconds since the admission of the request that has waited longest; 0 if none waits."""
        waiting = [entry.admitted_at for entry in (*self.queue, *self._prefetched_entries) if entry.alive]
        return max(0.0, self.clock() - min(waiting)) if waiting else 0.0

    def refuse_waiting(self, error: DeviceHung) -> None:
        """End the queued and the prefetched requests with this error."""
        for entry in (*self.queue, *self._prefetched_entries):
            self.queue.refuse(entry, error)

    @property
    def _prefetched_entries(self) -> Sequence[QueueEntry]:
        return self.prefetched.decision.entries if self.prefetched else ()

    @property
    def virtual_deadline(self) -> float:
        """The earliest virtual deadline of the waiting requests; infinite if none waits."""
        candidates = (*self._prefetched_entries, *self.queue[:1])
        return min((entry.virtual_deadline for entry in candidates), default=math.inf)

    @property
    def demand(self) -> DeviceDemand:
        """The device time that the waiting and the expected requests need."""
        now = self.clock()
        if now - self.arrivals.last_at > RECENT_S and not len(self.queue) and self.prefetched is None:
            return NO_DEMAND
        rung_s = [self.request_s(rung.plan) for rung in self.rungs]
        pinned_s = {plan: self.request_s(plan) for plan in {entry.pinned for entry in self.queue} if plan}
        rows = [
            (entry.virtual_deadline, entry.deadline)
            + ((pinned_s[entry.pinned],) * 2 if entry.pinned else (rung_s[-1], rung_s[entry.min_rung]))
            for entry in self.queue
        ]  # fmt: skip
        if self.prefetched is not None:  # its plan is fixed: the batch counts as one request
            entries, batch_s = self.prefetched.decision.entries, self.prefetched.predicted_s
            deadline = min(entry.deadline for entry in entries)
            rows.insert(0, (entries[0].virtual_deadline, deadline, batch_s, batch_s))
        virtual_deadlines, deadlines, full_s, min_s = np.array(rows).T if rows else np.empty((4, 0))
        arrivals = self.arrivals.read(now)
        return DeviceDemand(
            virtual_deadlines,
            deadlines,
            full_s,
            min_s,
            full_share=arrivals.rate * rung_s[-1],
            min_share=arrivals.rate * rung_s[0],
            allowed_s=arrivals.allowed_s,
        )
