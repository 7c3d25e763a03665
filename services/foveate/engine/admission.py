"""Admission: checks a request, counts it as an arrival, and refuses it early if it would be late."""

import asyncio
import math
from collections.abc import Callable

from prometheus_client import Counter

from foveate.core.errors import DeadlineExceeded
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.backlog import Backlog
from foveate.engine.queue import QueueEntry
from foveate.engine.runner import Runner
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.policy import (
    Candidate,
    Policy,
    QueuedRequest,
    Refusal,
    min_rung,
    virtual_deadline,
)

MAX_ALLOWED_S = 10.0
"""Longest time that counts as allowed by a request. A longer deadline does not justify a longer queue."""


class QueueAdmission:
    """Admits requests to the queue of one model."""

    def __init__(
        self,
        runner: Runner,
        policy: Policy,
        backlog: Backlog,
        host_load: HostLoadMonitor,
        demand_counter: Counter,
        default_deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        """demand_counter: counts full-quality demand in device seconds; default_deadline_s: orders requests
        without a deadline."""
        self.runner, self.policy, self.backlog, self.host_load = runner, policy, backlog, host_load
        self.default_deadline_s, self.clock = default_deadline_s, clock
        self._demand_counter = demand_counter
        self._full_version, self._full_s = -1, 0.0

    def reserve(self, objective: Objective, plan: Plan | None, ready_in_s: float) -> None:
        """Accept a request whose media will be decoded in `ready_in_s` seconds, or refuse it.

        Raises BadPlan, DeadlineExceeded, TooLate.
        """
        now = self.clock()
        deadline = self._checked_deadline(objective, plan, now)
        candidate: QueuedRequest = Candidate(
            virtual_deadline(objective, now, self.default_deadline_s),
            deadline,
            min_rung(self.backlog.rungs, objective.min_quality),
            plan,
            objective.tenant,
        )
        backlog = self.backlog
        refusal = self.policy.admit(
            candidate, backlog.queue, now, backlog.free_at, now + ready_in_s, backlog.other_demand
        )
        refused = refusal is not None and refusal.entry is candidate
        if refusal is None or not refused or refusal.service_s <= deadline - now:
            self._count(deadline, now)  # a request that would be late even on an idle device is no demand
        if refusal is not None and refused:
            self._decay_estimates()
            raise refusal.error(now)

    def admit(self, request: Request, reserved: bool) -> QueueEntry:
        """Return an entry to put into the queue, for which another request may have been refused.

        reserved: `reserve` has counted this request as an arrival. Raises BadPlan, DeadlineExceeded,
        Overloaded, TooLate.
        """
        now, objective = self.clock(), request.objective
        deadline = self._checked_deadline(objective, request.plan, now)
        self.backlog.queue.check_capacity(request.size_bytes, self.backlog.wait_s)
        entry = QueueEntry(
            request,
            virtual_deadline(objective, now, self.default_deadline_s),
            min_rung(self.backlog.rungs, objective.min_quality),
            asyncio.get_running_loop().create_future(),
            now,
        )
        if not reserved:
            self._count(deadline, now)
        self._make_room(entry, now)
        return entry

    def count_refused(self, allowed_s: float) -> None:
        """Count a request that a gateway has refused without asking the engine: it is demand too."""
        now = self.clock()
        self._count(now + allowed_s, now)

    def _checked_deadline(self, objective: Objective, plan: Plan | None, now: float) -> float:
        """The deadline in clock seconds, infinite if there is none. Raises BadPlan, DeadlineExceeded."""
        if plan is not None:
            self.runner.check(plan)
        if objective.deadline is None:
            return math.inf
        if objective.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        return objective.deadline

    def _make_room(self, entry: QueueEntry, now: float) -> None:
        """Ask the policy; refuse a queued request if it says so. Raises TooLate if it refuses the entry."""
        backlog = self.backlog
        refusal: Refusal[QueueEntry] | None = self.policy.admit(
            entry, backlog.queue, now, backlog.free_at, other_demand=backlog.other_demand
        )
        if refusal is None:
            return
        if refusal.entry is entry:
            self._decay_estimates()
            raise refusal.error(now)
        backlog.queue.refuse(refusal.entry, refusal.error(now))

    def _decay_estimates(self) -> None:
        """Let the estimates decay when a request is refused on an idle machine.

        Nothing runs that could correct the estimates. Without the decay, a machine that was slow for a moment
        would refuse requests for ever.
        """
        if not self.backlog.unfinished and not self.host_load.pending:
            self.backlog.latency.decay()
            self.host_load.decay()

    def _count(self, deadline: float, now: float) -> None:
        """Count an arrival, and its device seconds at full as full-quality demand."""
        allowed_s = self.default_deadline_s if math.isinf(deadline) else deadline - now
        self.backlog.arrivals.record(now, min(allowed_s, MAX_ALLOWED_S))
        version = self.backlog.latency.version
        if self._full_version != version:
            self._full_version, self._full_s = version, self.backlog.request_s(self.runner.card.full)
        self._demand_counter.inc(self._full_s)
