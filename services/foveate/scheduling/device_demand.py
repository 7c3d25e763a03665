"""The demand of other models for a shared device, as input of a scheduling policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _empty() -> Floats:
    return np.empty(0)


@dataclass(frozen=True, slots=True)
class DeviceDemand:
    """Requests to other models of the device: N queued ones, in queue order, and the expected ones."""

    virtual_deadline: Floats = field(default_factory=_empty)
    """(N,) the time that orders each request; clock seconds."""
    deadline: Floats = field(default_factory=_empty)
    """(N,) clock seconds; infinite for a request without a deadline."""
    full_s: Floats = field(default_factory=_empty)
    """(N,) device seconds of each request at full, or under the plan that it pins."""
    min_s: Floats = field(default_factory=_empty)
    """(N,) device seconds of each request on the cheapest plan that it accepts."""
    full_share: float = 0.0
    """Share of the device's time that the expected requests need at full."""
    min_share: float = 0.0
    """Share of the device's time that the expected requests need on the cheapest plan."""
    allowed_s: float = math.inf
    """Shortest time that requests to one of the models have allowed recently. They wait for every batch of
    this model."""

    def request_s(self, cost_ratio: float) -> Floats:
        """(N,) device seconds of each queued request if it is degraded to this share of the cost of full."""
        return np.maximum(self.min_s, cost_ratio * self.full_s)

    def share(self, cost_ratio: float) -> float:
        """Share of the device's time that the expected requests need if they are degraded like that."""
        return max(self.min_share, cost_ratio * self.full_share)

    def relative_to(self, start: float) -> "DeviceDemand":
        """The same, with times in seconds after `start`."""
        return (
            replace(self, virtual_deadline=self.virtual_deadline - start, deadline=self.deadline - start)
            if len(self.virtual_deadline)
            else self
        )

    @property
    def active(self) -> bool:
        """True if requests are queued or have arrived recently."""
        return bool(len(self.virtual_deadline)) or math.isfinite(self.allowed_s)


NO_DEMAND = DeviceDemand()


def combined_demand(demands: Sequence[DeviceDemand]) -> DeviceDemand:
    """The demand of several models as one, in queue order."""
    demands = [demand for demand in demands if demand.active]
    if not demands:
        return NO_DEMAND
    virtual_deadline = np.concatenate([demand.virtual_deadline for demand in demands])
    order = np.argsort(virtual_deadline, kind="stable")
    return DeviceDemand(
        virtual_deadline[order],
        np.concatenate([demand.deadline for demand in demands])[order],
        np.concatenate([demand.full_s for demand in demands])[order],
        np.concatenate([demand.min_s for demand in demands])[order],
        sum(demand.full_share for demand in demands),
        sum(demand.min_share for demand in demands),
        min(demand.allowed_s for demand in demands),
    )
