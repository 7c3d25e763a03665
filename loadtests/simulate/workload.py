"""What is asked in a simulation: when, how soon, and how good at least."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of requests that ask for the same."""

    slo_s: float
    """Seconds from arrival to deadline; may be infinite."""
    min_quality: float = 0.0
    priority: int = 0
    tenant: str = ""
    share: float = 1.0
    """Of all requests; shares are scaled so that they add up to 1."""


@dataclass(slots=True, eq=False)
class Job:
    """A request as a policy sees it, and where it is."""

    number: int
    """Its place in the order of arrival."""
    at: float
    """When it came; like all times here, seconds of the virtual clock."""
    virtual_deadline: float
    deadline: float
    min_rung: int
    tenant: str
    pinned: Plan | None = None
    waits: bool = False
    """It is in a queue."""


@dataclass(frozen=True, slots=True)
class Workload:
    """All requests of a simulation."""

    at: NDArray[np.float64]
    """Arrivals, sorted."""
    kinds: Sequence[Kind]
    kind: NDArray[np.intp]
    """For each request, the index of its kind."""

    @classmethod
    def draw(cls, at: NDArray[np.float64], kinds: Sequence[Kind], seed: int) -> "Workload":
        """Give every arrival a kind, by the shares."""
        shares = np.array([kind.share for kind in kinds])
        random = np.random.default_rng([seed, 1])
        return cls(at, tuple(kinds), random.choice(len(kinds), len(at), p=shares / shares.sum()))

    def __len__(self) -> int:
        return len(self.at)

    @property
    def deadline(self) -> NDArray[np.float64]:
        slo_s: NDArray[np.float64] = np.array([kind.slo_s for kind in self.kinds])[self.kind]
        return self.at + slo_s
