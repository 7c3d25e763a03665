"""Who waits and what batches cost, as arrays: what a policy reckons with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan
from foveate.engine.latency import Predictor
from foveate.engine.others import Floats
from foveate.engine.policy import Waiting

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prices:
    """What batches cost now, as arrays over plans: fixed + each * size seconds."""

    fixed: Floats
    each: Floats
    useful: NDArray[np.int64]
    """The largest batch worth making."""
    cost: Floats
    """Seconds a picture takes in it."""

    @classmethod
    def of(cls, plans: Sequence[Plan], latency: Predictor, max_batch: int) -> "Prices":
        fixed = np.array([latency.predict(plan, 0) for plan in plans])
        each = np.array([latency.predict(plan, 1) for plan in plans]) - fixed
        useful = np.array([latency.useful_batch(plan, max_batch) for plan in plans])
        return cls(fixed, each, useful, fixed / useful + each)


@dataclass(frozen=True, slots=True)
class View:
    """Who waits, as arrays in the order of the queue."""

    slack: Floats
    """Seconds from the start of the next batch to each deadline."""
    due: Floats
    """The same to each turn: in order."""
    floors: NDArray[np.int64]
    """The cheapest rung each may get; for a pinned plan, its place in `plans`."""
    pinned: Mask
    head_start: Floats
    """Seconds by which each turn comes before its deadline; steps of a priority."""
    plans: tuple[Plan, ...]
    """The rungs, and after them what is pinned besides."""

    @classmethod
    def of(cls, waiting: Sequence[Waiting], start: float, rungs: Sequence[Plan]) -> "View":
        plans = dict.fromkeys(rungs)
        named = {at: entry.pinned for at, entry in enumerate(waiting) if entry.pinned}
        plans |= dict.fromkeys(named.values())
        places = {plan: place for place, plan in enumerate(plans)}
        floors = np.array([entry.floor for entry in waiting])
        pinned = np.zeros(len(waiting), bool)
        for at, plan in named.items():
            floors[at], pinned[at] = places[plan], True
        deadlines = np.array([entry.deadline for entry in waiting])
        due = np.array([entry.due for entry in waiting])
        head_start = (deadlines - due).round(3)
        return cls(deadlines - start, due - start, floors, pinned, head_start, tuple(plans))

    def of_rows(self, mask: Mask) -> "View":
        """Those rows alone."""
        return View(
            self.slack[mask],
            self.due[mask],
            self.floors[mask],
            self.pinned[mask],
            self.head_start[mask],
            self.plans,
        )

    def gets(self, rung: int) -> NDArray[np.int64]:
        """What each gets when the others get this rung: places in `plans`."""
        return np.where(self.pinned, self.floors, np.maximum(self.floors, rung))
