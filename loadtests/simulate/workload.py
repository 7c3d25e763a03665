"""The requests of a simulation: arrival times, deadlines and minimum qualities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests with the same objective."""

    slo_s: float
    """Seconds from arrival to deadline; may be infinite."""
    min_quality: float = 0.0
    priority: int = 0
    tenant: str = ""
    share: float = 1.0
    """Share of all requests; shares are scaled so that they add up to 1."""


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """One request, in the form that a policy sees."""

    number: int
    """Position in the order of arrival."""
    at: float
    """Arrival; like all times here, seconds of the virtual clock."""
    virtual_deadline: float
    deadline: float
    min_rung: int
    tenant: str
    pinned: Plan | None = None
    queued: bool = False
    """True while the request waits in the queue of a replica."""


@dataclass(frozen=True, slots=True)
class Workload:
    """All N requests of a simulation."""

    at: NDArray[np.float64]
    """(N,) arrival times, sorted."""
    classes: Sequence[RequestClass]
    class_index: NDArray[np.intp]
    """(N,) index into `classes` of each request."""

    @classmethod
    def draw(cls, at: NDArray[np.float64], classes: Sequence[RequestClass], seed: int) -> "Workload":
        """Assign a class to every arrival at random, according to the shares."""
        shares = np.array([each.share for each in classes])
        random = np.random.default_rng([seed, 1])
        return cls(at, tuple(classes), random.choice(len(classes), len(at), p=shares / shares.sum()))

    def __len__(self) -> int:
        return len(self.at)

    @property
    def deadline(self) -> NDArray[np.float64]:
        """(N,) seconds of the virtual clock."""
        slo_s: NDArray[np.float64] = np.array([each.slo_s for each in self.classes])[self.class_index]
        return self.at + slo_s
