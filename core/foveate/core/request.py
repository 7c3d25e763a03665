"""A request, and its objective: how good and how fast the answer must be."""

from dataclasses import dataclass, field
from typing import Any

from foveate.core.model import Task
from foveate.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Objective:
    """The requirements on an answer."""

    deadline: float | None = None
    """Absolute time in seconds of the monotonic clock; None for no deadline."""
    min_quality: float = 0.0
    """Lowest acceptable quality of the plan, in 0..1."""
    priority: int = 0
    """Each step moves the request's virtual deadline forward by the policy's priority boost."""
    tenant: str = ""
    """Name of the tenant. Many requests of one tenant do not delay those of another."""


@dataclass(frozen=True, slots=True)
class Request:
    """One task on one image, clip or prompt. The media are decoded already; the engine does not read them."""

    id: str
    model: str
    """Name of the model."""
    media: Any
    """Input of the model's runner."""
    size_bytes: int
    """Memory that the decoded media hold while the request waits."""
    task: Task = "classify"
    objective: Objective = field(default_factory=Objective)
    plan: Plan | None = None
    """The plan that the client or the settings pin; None leaves the choice to the policy."""
    explain: bool = False
    """Whether to explain which patches were kept, which takes one more forward."""
    features: bool = False
    """Whether to return the features from which point prompts are answered."""
