"""The interface of a scheduling policy: queued requests and a clock in, decisions out."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

from foveate.core.errors import TooLate
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import DEFAULTS
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand

DEFAULT_DEADLINE_S: float = DEFAULTS["default_deadline_s"]
"""A request without a deadline is ordered as if its deadline were this far away. It never expires."""
PRIORITY_BOOST_S = 1.0
"""Seconds by which one step of priority moves a request forward. The order of two queued requests never
changes, so no request is overtaken forever."""


def virtual_deadline(
    objective: Objective,
    now: float,
    default_deadline_s: float = DEFAULT_DEADLINE_S,
    priority_boost_s: float = PRIORITY_BOOST_S,
) -> float:
    """The time that orders a request in the queue: its deadline less its priority boost, in clock seconds."""
    deadline = now + default_deadline_s if objective.deadline is None else objective.deadline
    return deadline - priority_boost_s * objective.priority


def pareto_rungs(card: ModelCard) -> tuple[Rung, ...]:
    """The rungs that a policy may choose: each has a higher measured quality than all cheaper ones.

    The full plan is always the last one.
    """
    rungs: list[Rung] = []
    for rung in card.ladder[:-1]:
        if rung.quality is not None and rung.quality > max((r.quality or 0.0 for r in rungs), default=0.0):
            rungs.append(rung)
    return (*rungs, card.ladder[-1])


def min_rung(rungs: Sequence[Rung], min_quality: float) -> int:
    """Index of the cheapest rung with at least this quality; the last rung, full, if no other has it."""
    qualities = (rung.quality or 0.0 for rung in rungs[:-1])
    return next((i for i, quality in enumerate(qualities) if quality >= min_quality), len(rungs) - 1)


class QueuedRequest(Protocol):
    """The part of a request that a policy sees."""

    @property
    def virtual_deadline(self) -> float:
        """The time that orders the queue: requests are served in this order. Clock seconds."""
        ...

    @property
    def deadline(self) -> float:
        """Clock seconds; infinite for a request without a deadline."""
        ...

    @property
    def min_rung(self) -> int:
        """Index of the cheapest rung that meets the request's minimum quality."""
        ...

    @property
    def pinned(self) -> Plan | None:
        """The plan that the client chose, if it chose one."""
        ...

    @property
    def tenant(self) -> str:
        """The tenant that the request belongs to."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that asks for admission and is not queued yet. Fields as in `QueuedRequest`."""

    virtual_deadline: float
    deadline: float
    min_rung: int
    pinned: Plan | None
    tenant: str


QueuedT = TypeVar("QueuedT", bound=QueuedRequest)


def last_of_largest_tenant(candidate: QueuedT, waiting: Sequence[QueuedT]) -> QueuedT | None:
    """The last queued request of the tenant with the most queued requests, or None.

    None if that tenant has no more than the candidate's tenant would have: the flood of one tenant is
    refused, not the requests of others. A request without a deadline is never refused.
    """
    queued = Counter(entry.tenant for entry in waiting)
    tenant, count = max(queued.items(), key=itemgetter(1), default=(candidate.tenant, 0))
    if count <= queued[candidate.tenant] + 1:
        return None
    entries = (entry for entry in reversed(waiting) if entry.tenant == tenant)
    return next((entry for entry in entries if not math.isinf(entry.deadline)), None)


def priority_boost_s(entry: QueuedRequest) -> float:
    """Seconds by which the priority of a request moves it forward; infinite for one without a deadline."""
    # Rounded: the difference of two times is not exact, and equal priorities have to be equal.
    return round(entry.deadline - entry.virtual_deadline, 3)


def last_of_lowest_priority(candidate: QueuedT, waiting: Sequence[QueuedT]) -> QueuedT | None:
    """The last queued request of the lowest priority, if that is below the candidate's; else None.

    A request without a deadline is never refused, and no other one is refused for it.
    """
    if math.isinf(candidate.deadline) or not waiting:
        return None
    lowest = min(reversed(waiting), key=priority_boost_s)
    return lowest if priority_boost_s(lowest) < priority_boost_s(candidate) else None


@dataclass(frozen=True, slots=True)
class BatchDecision(Generic[QueuedT]):
    """One batch: these requests, under this plan."""

    entries: tuple[QueuedT, ...]
    plan: Plan
    full: bool
    """No further request could join the batch."""
    reason: Reason = "full"
    refused: tuple[QueuedT, ...] = field(default=())
    """Queued requests that cannot meet their deadlines on any plan that they accept."""


@dataclass(frozen=True, slots=True)
class Refusal(Generic[QueuedT]):
    """One request has to be refused so that the others meet their deadlines."""

    entry: QueuedT
    """The refused request: the candidate, or a queued request in its place."""
    wait_s: float
    """Seconds that the queue takes when every request runs on the cheapest plan that it accepts."""
    service_s: float
    """Seconds that the candidate takes on the cheapest plan that it accepts."""

    def error(self, now: float) -> TooLate:
        """The failure of the refused request, with the predicted wait as Retry-After."""
        return TooLate(
            f"the deadline is in {self.entry.deadline - now:.3f} s, but the queue takes {self.wait_s:.3f} s "
            f"and the answer {self.service_s:.3f} s on the cheapest plan that the request accepts; "
            "allow more time or retry later",
            self.wait_s,
        )


class Policy(Protocol):
    """Decides which requests are admitted, and which batch runs next. Times are clock seconds."""

    def admit(
        self,
        candidate: QueuedT,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> Refusal[QueuedT] | None:
        """Refuse the candidate, or a queued request in its place; None admits it and refuses no request.

        waiting: the queue in order; free_at: when the device has finished the running batch; ready_at: when
        the candidate can run at the earliest; other_demand: what other models need of the same device.
        """
        ...

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        """The next batch, to start at `free_at` or now, whichever is later; None if no request waits.

        arrivals: recent requests to this model; the other parameters are those of `admit`.
        """
        ...


PolicyFactory = Callable[[Sequence[Rung], Predictor, int], Policy]
"""Takes the rungs to choose from, the latency model, and the largest batch."""
