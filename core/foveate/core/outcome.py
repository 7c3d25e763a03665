"""How a request ended: the answer, the plan it ran under, what it cost, and what was looked at."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core.clicks import Features
from foveate.core.plan import Plan

Fate = Literal["kept", "merged", "dropped"]
"""What became of a patch: still a token of its own, part of a token with others, or looked at no more."""
Reason = Literal["full", "pinned", "deadline", "load"]
"""Why a plan was taken: nothing spoke against full; it was named; some deadline would have been missed at
a better one; those who are expected would have been."""


@dataclass(frozen=True, slots=True)
class ReductionStage:
    """One picture's tokens after a block that changed them."""

    block: int
    """The block in which they changed, counted from 1."""
    tokens: int
    """Tokens that left it, prefix tokens included."""
    into: tuple[int, ...]
    """For each patch, row by row, the group of patches that share its token: the smallest patch number
    in it, counted from 0, or -1 once the patch was dropped."""

    @property
    def fate(self) -> tuple[Fate, ...]:
        """What had become of each patch by then."""
        sizes = Counter(self.into)
        return tuple(
            "dropped" if group < 0 else "kept" if sizes[group] == 1 else "merged" for group in self.into
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which patches of one picture were kept, merged or dropped on the way, and where it left."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    stages: tuple[ReductionStage, ...]
    """One for each block in which the picture's tokens changed, up to its exit."""
    exit_layer: int
    """Blocks the picture went through."""

    @property
    def fate(self) -> tuple[Fate, ...]:
        """What had become of each patch when the picture left."""
        if self.stages:
            return self.stages[-1].fate
        rows, columns = self.grid
        return tuple("kept" for _ in range(rows * columns))


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """How well each class that a picture shows somewhere fits at each place in it."""

    classes: tuple[int, ...]
    """The classes, K of them, in order; 0 is the background and k the model's label k - 1."""
    scores: NDArray[np.float16]
    """(K, h, w) unnormalised log-probabilities on an even grid over the whole picture."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the model gives for one item."""

    scores: NDArray[np.float32]
    """(C,) class probabilities, or (D,) features where the model has no classifier; of a model that segments,
    each class's share of the picture, the background's first."""
    tokens: int
    """Tokens that were left at the end, prefix tokens included."""
    exit_layer: int
    """Blocks the item went through."""
    gflops: float
    """Billions of multiply-adds it took."""
    chosen: Plan | None = None
    """The rung that the item's content asked for, where the plan leaves the choice to it."""
    explanation: Explanation | None = None
    """What was looked at, where the request asked for it and the model can tell."""
    maps: ClassMaps | None = None
    """Where each class is, from a model that segments."""
    named: NDArray[np.float32] | None = None
    """(C,) class probabilities of the whole picture by the classifier on the same trunk, from a model that
    segments and went through all of it."""
    features: Features | None = None
    """What clicks are answered from, where the request asked for it and a model beside this one answers."""
    frames: tuple[int, ...] = ()
    """Which frames of a clip were seen, in order."""
    over_time: NDArray[np.float32] | None = None
    """(n, C): the scores after each of these frames, from a model that names clips."""
    film: tuple[ClassMaps, ...] = ()
    """Where each class is in each of these frames, from a model that segments clips."""

    def last_seen(self, frame: int) -> ClassMaps:
        """The maps of the last frame seen by then; before any was, of the first."""
        before = sum(1 for seen in self.frames if seen <= frame)
        return self.film[max(0, before - 1)]


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
    reason: Reason = "full"
