"""What a scheduling policy is asked and answers. Pure: waiting requests and a clock in, decisions out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from foveate.core.model import Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.engine.latency import Predictor
from foveate.engine.others import NOBODY, Others


class Waiting(Protocol):
    """What a policy knows of a request."""

    @property
    def due(self) -> float:
        """When its turn comes: requests are served in this order. Clock seconds."""
        ...

    @property
    def deadline(self) -> float:
        """When an answer is worth nothing any more; infinite for some. Clock seconds."""
        ...

    @property
    def floor(self) -> int:
        """Index of the cheapest rung it may get."""
        ...

    @property
    def pinned(self) -> Plan | None:
        """The one plan that it may get, if it named one."""
        ...

    @property
    def tenant(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A request that is not there yet."""

    due: float
    deadline: float
    floor: int
    pinned: Plan | None
    tenant: str


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Decision(Generic[W]):
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


@dataclass(frozen=True, slots=True)
class Flow:
    """How requests have been coming of late."""

    rate: float = 0.0
    """A second."""
    allowed_s: float = math.inf
    """Mean seconds from arrival to deadline."""
    coming: int = 0
    """Requests that are being made ready, and will wait too in a moment."""
    others: Others = NOBODY
    """What other models want of the same device."""


class Policy(Protocol):
    """Decides who is let in, and what runs next."""

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: Others = NOBODY,
    ) -> Refusal[W] | None:
        """Whether a newcomer can be served in time; `waiting` is in order, `free_at` when the device is
        free of what runs now, `ready_at` when the newcomer can be run at the earliest, `others` what else
        waits for the device."""
        ...

    def choose(self, waiting: Sequence[W], now: float, free_at: float, flow: Flow) -> Decision[W] | None:
        """The next batch, to start at `free_at` or now; None where nobody waits."""
        ...


PolicyMaker = Callable[[Sequence[Rung], Predictor, int], Policy]
"""Takes the rungs to choose from, the latency model, and the largest batch."""
