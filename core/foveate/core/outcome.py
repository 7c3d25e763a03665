"""How a request ended: the answer, the plan it ran under, and what it cost."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Result:
    """What the model gives for one item."""

    scores: NDArray[np.float32]
    """(C,) class probabilities, or (D,) features where the model has no classifier."""
    tokens: int
    """Tokens that were left at the end, prefix tokens included."""
    exit_layer: int
    """Blocks the item went through."""
    gflops: float
    """Billions of multiply-adds it took."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds."""

    queue_s: float
    """Admitted until its batch began to run."""
    compute_s: float
    """The batch's run, stacking included where nothing ran meanwhile."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one request, and what it took."""

    result: Result
    plan: Plan
    timings: Timings
    batch_size: int
