"""What a scheduling policy is asked and answers. Pure: waiting requests and a clock in, decisions out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from foveate.core.errors import TooLate
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand

DEFAULT_DEADLINE_S = 1.0
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


class QueuedRequest(Protocol):
    """What a policy knows of a request."""

    @property
    def virtual_deadline(self) -> float:
        """When its turn comes: requests are served in this order. Clock seconds."""
        ...

    @property
    def deadline(self) -> float:
        """When an answer is worth nothing any more; infinite for some. Clock seconds."""
        ...

    @property
    def min_rung(self) -> int:
        """Index of the cheapest rung it may get."""
        ...

    @property
    def pinned(self) -> Plan | None:
        """The one plan that it may get, if it named one."""
        ...

    @property
    def tenant(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that is not there yet."""

    virtual_deadline: float
    deadline: float
    min_rung: int
    pinned: Plan | None
    tenant: str


W = TypeVar("W", bound=QueuedRequest)


@dataclass(frozen=True, slots=True)
class BatchDecision(Generic[W]):
    """One batch: these requests, under this plan."""

    entries: tuple[W, ...]
    plan: Plan
    full: bool
    """No more could join it."""
    reason: Reason = "full"
    refused: tuple[W, ...] = field(default=())
    """Requests that can no longer be answered in time, whatever is spent on them."""


@dataclass(frozen=True, slots=True)
class Refusal(Generic[W]):
    """One request has to be refused so that the others meet their deadlines."""

    entry: W
    """The refused request: the candidate, or a queued request in its place."""
    wait_s: float
    """Seconds that the queue takes when every request runs on the cheapest plan that it accepts."""
    takes_s: float
    """Seconds that the candidate takes on the cheapest plan that it accepts."""

    def error(self, now: float) -> TooLate:
        """The failure of the refused request, with the predicted wait as Retry-After."""
        return TooLate(
            f"the deadline is in {self.entry.deadline - now:.3f} s, but the queue takes {self.wait_s:.3f} s "
            f"and the answer {self.takes_s:.3f} s on the cheapest plan that the request accepts; "
            "allow more time or retry later",
            self.wait_s,
        )


class Policy(Protocol):
    """Decides who is let in, and what runs next."""

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: DeviceDemand = NO_DEMAND,
    ) -> Refusal[W] | None:
        """Whether a newcomer can be served in time; `waiting` is in order, `free_at` when the device is
        free of what runs now, `ready_at` when the newcomer can be run at the earliest, `others` what else
        waits for the device."""
        ...

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        """The next batch, to start at `free_at` or now, both in clock seconds; None if no request waits.

        arrivals: recent requests to this model; others: what other models need of the same device.
        """
        ...


PolicyFactory = Callable[[Sequence[Rung], Predictor, int], Policy]
"""Takes the rungs to choose from, the latency model, and the largest batch."""
