"""The state of one request on its way through the gateway."""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from foveate.cluster import Slot
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective

Options = TypeVar("Options")
NO_CACHE = re.compile("no-(cache|store)", re.IGNORECASE)
"""Values of `cache-control` that bypass the caches."""


@dataclass(frozen=True, slots=True)
class ClientChoice:
    """The model and the plan that the client named; None where it named none."""

    model: str | None
    plan: str | None


@dataclass(slots=True)
class RequestLog:
    """What the metrics need of a request when it ends, whatever its outcome; filled in on the way."""

    model: str = "unknown"
    objective: Objective = field(default_factory=Objective)
    first_token_by: float | None = None
    """Of a chat: deadline of the first token, in seconds of the monotonic clock."""
    slot: Slot | None = None
    """The reservation; None until a model has to run for the request."""

    @property
    def has_deadline(self) -> bool:
        """Whether the answer, or its first token, has a deadline."""
        return self.objective.deadline is not None or self.first_token_by is not None


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


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers of a request by name, the last value of each. pairs: as ASGI gives them."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}


def bypasses_cache(headers: Mapping[str, str]) -> bool:
    """Whether the client wants no answer from a cache, and nothing of its own in one."""
    return "cache-control" in headers and bool(NO_CACHE.search(headers["cache-control"]))


def request_id_of(header: str) -> str:
    """The client's request id if it is printable ASCII of 1 to 128 characters, else a new one."""
    if 0 < len(header) <= 128 and header.isascii() and header.isprintable():
        return header
    return f"{random.getrandbits(96):024x}"
