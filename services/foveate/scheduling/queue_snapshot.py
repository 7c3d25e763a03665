"""The queue and the costs of batches as arrays, the form in which `SloPolicy` computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import Floats
from foveate.scheduling.policy import QueuedRequest

Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """Predicted seconds of a batch for each of P plans: fixed_s + item_s * size."""

    fixed_s: Floats
    """(P,) seconds of a batch, whatever its size."""
    item_s: Floats
    """(P,) seconds by which each item lengthens a batch."""
    efficient_size: Indices
    """(P,) the size beyond which a larger batch hardly makes an item cheaper."""
    request_s: Floats
    """(P,) seconds of one request in a batch of that size."""

    @classmethod
    def predict(cls, plans: Sequence[Plan], latency: Predictor, max_batch: int) -> "BatchCosts":
        """The costs of these plans according to the latency model now."""
        fixed_s = np.array([latency.predict(plan, 0) for plan in plans])
        item_s = np.array([latency.predict(plan, 1) for plan in plans]) - fixed_s
        sizes = np.array([latency.efficient_batch_size(plan, max_batch) for plan in plans])
        return cls(fixed_s, item_s, sizes, fixed_s / sizes + item_s)


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """N waiting requests as arrays in queue order."""

    slack_s: Floats
    """(N,) seconds from the start of the next batch to each deadline."""
    virtual_deadline_s: Floats
    """(N,) seconds from the start of the next batch to each virtual deadline; sorted."""
    min_plan: Indices
    """(N,) index into `plans` of the cheapest plan that each request accepts, or of the plan that it pins."""
    pinned: Mask
    """(N,) True for a request with a pinned plan."""
    priority_boost_s: Floats
    """(N,) seconds from each virtual deadline to the deadline: multiples of the priority boost."""
    plans: tuple[Plan, ...]
    """The rungs, followed by the pinned plans that are no rung."""

    @classmethod
    def from_queue(
        cls,
        waiting: Sequence[QueuedRequest],
        start: float,
        rungs: Sequence[Plan],
        served_by: Sequence[int] = (),
    ) -> "QueueSnapshot":
        """The requests in `waiting`; start: clock seconds at which the next batch begins.

        served_by: for each rung, the index of the rung that runs in its place; empty: each runs itself.
        """
        pinned_plans = {row: entry.pinned for row, entry in enumerate(waiting) if entry.pinned}
        plans = dict.fromkeys((*rungs, *pinned_plans.values()))
        index_of = {plan: index for index, plan in enumerate(plans)}
        min_plan = np.array([entry.min_rung for entry in waiting])
        if served_by:
            min_plan = np.array(served_by)[min_plan]
        pinned = np.zeros(len(waiting), bool)
        for row, plan in pinned_plans.items():
            min_plan[row], pinned[row] = index_of[plan], True
        deadline = np.array([entry.deadline for entry in waiting])
        virtual_deadline = np.array([entry.virtual_deadline for entry in waiting])
        priority_boost_s = (deadline - virtual_deadline).round(3)
        return cls(
            deadline - start, virtual_deadline - start, min_plan, pinned, priority_boost_s, tuple(plans)
        )

    def select(self, mask: Mask) -> "QueueSnapshot":
        """The requests for which the mask (N,) is True."""
        return QueueSnapshot(
            self.slack_s[mask],
            self.virtual_deadline_s[mask],
            self.min_plan[mask],
            self.pinned[mask],
            self.priority_boost_s[mask],
            self.plans,
        )

    def plan_at(self, rung: int) -> Indices:
        """(N,) index into `plans` of the plan of each request when the queue is served at this rung."""
        return np.where(self.pinned, self.min_plan, np.maximum(self.min_plan, rung))
