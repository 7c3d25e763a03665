"""What a scheduling policy is asked and answers. Pure: waiting requests and a clock in, decisions out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from foveate.core.model import Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand


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
    """Somebody has to go so that the others are served in time."""

    entry: W
    """The newcomer, or one that waits in its place."""
    wait_s: float
    """How long it takes to serve those who wait, at the least they accept."""
    takes_s: float
    """How long the newcomer's answer takes at the least that it accepts."""


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
