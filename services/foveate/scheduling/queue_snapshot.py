"""Who waits and what batches cost, as arrays: what a policy reckons with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import Floats
from foveate.scheduling.policy import QueuedRequest

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """What batches cost now, as arrays over plans: fixed + each * size seconds."""

    fixed: Floats
    each: Floats
    efficient: NDArray[np.int64]
    """The largest batch worth making."""
    cost: Floats
    """Seconds a picture takes in it."""

    @classmethod
    def of(cls, plans: Sequence[Plan], latency: Predictor, max_batch: int) -> "BatchCosts":
        fixed = np.array([latency.predict(plan, 0) for plan in plans])
        each = np.array([latency.predict(plan, 1) for plan in plans]) - fixed
        efficient = np.array([latency.efficient_batch_size(plan, max_batch) for plan in plans])
        return cls(fixed, each, efficient, fixed / efficient + each)


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """Who waits, as arrays in the order of the queue."""

    slack: Floats
    """Seconds from the start of the next batch to each deadline."""
    virtual_deadline: Floats
    """The same to each turn: in order."""
    min_rungs: NDArray[np.int64]
    """The cheapest rung each may get; for a pinned plan, its place in `plans`."""
    pinned: Mask
    priority_boost: Floats
    """Seconds by which each turn comes before its deadline; steps of a priority."""
    plans: tuple[Plan, ...]
    """The rungs, and after them what is pinned besides."""

    @classmethod
    def of(cls, waiting: Sequence[QueuedRequest], start: float, rungs: Sequence[Plan]) -> "QueueSnapshot":
        plans = dict.fromkeys(rungs)
        named = {at: entry.pinned for at, entry in enumerate(waiting) if entry.pinned}
        plans |= dict.fromkeys(named.values())
        places = {plan: place for place, plan in enumerate(plans)}
        min_rungs = np.array([entry.min_rung for entry in waiting])
        pinned = np.zeros(len(waiting), bool)
        for at, plan in named.items():
            min_rungs[at], pinned[at] = places[plan], True
        deadlines = np.array([entry.deadline for entry in waiting])
        virtual_deadline = np.array([entry.virtual_deadline for entry in waiting])
        priority_boost = (deadlines - virtual_deadline).round(3)
        return cls(
            deadlines - start, virtual_deadline - start, min_rungs, pinned, priority_boost, tuple(plans)
        )

    def of_rows(self, mask: Mask) -> "QueueSnapshot":
        """Those rows alone."""
        return QueueSnapshot(
            self.slack[mask],
            self.virtual_deadline[mask],
            self.min_rungs[mask],
            self.pinned[mask],
            self.priority_boost[mask],
            self.plans,
        )

    def gets(self, rung: int) -> NDArray[np.int64]:
        """What each gets when the others get this rung: places in `plans`."""
        return np.where(self.pinned, self.min_rungs, np.maximum(self.min_rungs, rung))
