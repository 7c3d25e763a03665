"""A request on its way through the gateway."""

import random
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from foveate.cluster import Slot
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class NamedByClient:
    """What a client named itself."""

    model: str | None
    plan: str | None


@dataclass(frozen=True, slots=True)
class RequestContext(Generic[Options]):
    """A request whose head has been understood."""

    id: str
    card: ModelCard
    objective: Objective
    plan: Plan | None
    named: NamedByClient
    options: Options
    """What it asks of this task."""
    arrived: float
    trail: "RequestLog"
    anew: bool = False
    """It is to be answered from nothing that was computed before."""

    def kept(self, total_s: float) -> bool | None:
        """Whether its deadline was, when it was answered after so many seconds; None where it set none."""
        deadline = self.objective.deadline
        return None if deadline is None else self.arrived + total_s <= deadline

    @property
    def pinned(self) -> bool:
        """The client chose the plan."""
        return self.named.plan is not None


@dataclass(slots=True)
class RequestLog:
    """What is known of a request by the time it ends, however it does."""

    model: str = "unknown"
    objective: Objective = field(default_factory=Objective)
    slot: Slot | None = None
    """The reservation, once something has to run for the request."""


def request_id_of(given: str) -> str:
    """The client's own id where it is short and printable, else a new one."""
    if 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(96):024x}"
