"""Batch sizes that the whole system uses, and which of them a runner has run already."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from foveate.core.plan import Plan

BATCH_SIZES: tuple[int, ...] = tuple(sorted({base << shift for base in (1, 3) for shift in range(12)}))
"""The allowed batch sizes: 1, 2, 3, 4, 6, 8, 12, ... Kernels are prepared once per size, so there are few of
them. A runner uses those up to its `max_batch`."""


@dataclass(frozen=True, slots=True)
class WarmedPlan:
    """A plan that has run on blank inputs, so that requests do not wait while its kernels are prepared."""

    plan: Plan
    size: int
    """The largest batch that has run."""
    times: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    """Seconds of a batch by number of threads and batch size, measured on this machine; may be empty."""
