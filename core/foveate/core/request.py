"""What one client asks, and how good and how fast the answer must be."""

from dataclasses import dataclass, field
from typing import Any

from foveate.core.model import Task
from foveate.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Objective:
    """The promise a request asks for."""

    deadline: float | None = None
    """Absolute, in seconds of the monotonic clock; None waits as long as it takes."""
    min_quality: float = 0.0
    """Lowest acceptable plan quality, in 0..1."""
    priority: int = 0
    """How many head starts its turn has over that of a request with priority 0."""
    tenant: str = ""
    """Whom it is for; no tenant's flood is at the others' cost."""


@dataclass(frozen=True, slots=True)
class Request:
    """One task on one medium. Media is decoded already: the engine never looks inside."""

    id: str
    model: str
    media: Any
    size_bytes: int
    """Memory the decoded media holds while it waits."""
    task: Task = "classify"
    objective: Objective = field(default_factory=Objective)
    plan: Plan | None = None
    """Pinned by the client; None leaves the choice to the server."""
    explain: bool = False
    """Asks for an account of what was looked at, which takes one more forward."""
    features: bool = False
    """Asks for what clicks on the picture are answered from."""
