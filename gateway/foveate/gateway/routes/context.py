"""The state of one request on its way through the gateway."""

import random
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from foveate.cluster import Slot
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class ClientChoice:
    """The model and the plan that the client named; None where it named none."""

    model: str | None
    plan: str | None


@dataclass(slots=True)
class RequestLog:
    """What is known of a request when it ends, whatever its outcome."""

    model: str = "unknown"
    objective: Objective = field(default_factory=Objective)
    slot: Slot | None = None
    """The reservation; None until a model has to run for the request."""


@dataclass(frozen=True, slots=True)
class RequestContext(Generic[Options]):
    """A request whose query and headers have been parsed."""

    id: str
    card: ModelCard
    """The model that answers."""
    objective: Objective
    plan: Plan | None
    """The plan to run under; None leaves it to the policy."""
    choice: ClientChoice
    options: Options
    """The options of the task."""
    arrived: float
    """Monotonic clock seconds."""
    log: RequestLog
    bypass_cache: bool = False
    """The client sent `cache-control: no-cache` or `no-store`."""

    def deadline_met(self, total_s: float) -> bool | None:
        """Whether an answer after so many seconds meets the deadline; None without a deadline."""
        deadline = self.objective.deadline
        return None if deadline is None else self.arrived + total_s <= deadline

    @property
    def pinned(self) -> bool:
        """The client chose the plan."""
        return self.choice.plan is not None


def request_id_of(given: str) -> str:
    """The client's own id if it is printable ASCII of 1 to 128 characters, else a new one."""
    if 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(96):024x}"
