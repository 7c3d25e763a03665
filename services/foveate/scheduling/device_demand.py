"""What models want of a device that they share, as the policies of the others see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _none() -> Floats:
    return np.empty(0)


@dataclass(frozen=True, slots=True)
class DeviceDemand:
    """Requests to other models: those that wait, in the order of their turns, and those that come."""

    virtual_deadline: Floats = field(default_factory=_none)
    """When the turn of each comes; clock seconds."""
    deadline: Floats = field(default_factory=_none)
    full_s: Floats = field(default_factory=_none)
    """Seconds that each takes at full, or under the plan that it named."""
    least_s: Floats = field(default_factory=_none)
    """The same at the least that it accepts."""
    full_share: float = 0.0
    """Of the device's time, what those who come would take were all answered at full."""
    least_share: float = 0.0
    allowed_s: float = math.inf
    """The least that they have allowed for an answer of late: they wait for every batch of this model."""

    def waiting_s(self, ease: float) -> Floats:
        """Seconds that each of those who wait takes, where `ease` of what full takes is spent on each."""
        return np.maximum(self.least_s, ease * self.full_s)

    def share(self, ease: float) -> float:
        """Of the device's time, what those who come take then."""
        return max(self.least_share, ease * self.full_share)

    def since(self, start: float) -> "DeviceDemand":
        """The same, turns and deadlines in seconds from that time on."""
        return (
            replace(self, virtual_deadline=self.virtual_deadline - start, deadline=self.deadline - start)
            if len(self.virtual_deadline)
            else self
        )

    @property
    def any(self) -> bool:
        """Whether requests have come of late."""
        return bool(len(self.virtual_deadline)) or math.isfinite(self.allowed_s)


NO_DEMAND = DeviceDemand()


def combined_demand(demand: Sequence[DeviceDemand]) -> DeviceDemand:
    """What several models want, as one."""
    demand = [one for one in demand if one.any]
    if not demand:
        return NO_DEMAND
    virtual_deadline = np.concatenate([one.virtual_deadline for one in demand])
    order = np.argsort(virtual_deadline, kind="stable")
    return DeviceDemand(
        virtual_deadline[order],
        np.concatenate([one.deadline for one in demand])[order],
        np.concatenate([one.full_s for one in demand])[order],
        np.concatenate([one.least_s for one in demand])[order],
        sum(one.full_share for one in demand),
        sum(one.least_share for one in demand),
        min(one.allowed_s for one in demand),
    )
