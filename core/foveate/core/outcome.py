"""The outcome of a request: the answer, the plan it ran under, its cost, and its explanation."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan
from foveate.core.point_prompts import Features

PatchState = Literal["kept", "merged", "dropped"]
"""State of a patch: a token of its own, part of a token with other patches, or no longer used."""
Reason = Literal["full", "pinned", "deadline", "load", "context"]
"""Why a plan was chosen. full: the full plan is possible. pinned: the request or the settings named the plan.
deadline: a waiting request would miss its deadline under a better plan. load: expected requests would.
context: the chat does not fit the model's context under a better plan."""


@dataclass(frozen=True, slots=True)
class ReductionStage:
    """One image's tokens after a block that reduced them."""

    block: int
    """The block, counted from 1."""
    tokens: int
    """Tokens after the block, prefix tokens included."""
    groups: tuple[int, ...]
    """For each patch, row by row, the group of patches that share its token. A group is named by its smallest
    patch number, counted from 0; -1 stands for a dropped patch."""

    @property
    def patch_states(self) -> tuple[PatchState, ...]:
        """The state of each patch after the block."""
        sizes = Counter(self.groups)
        return tuple(
            "dropped" if group < 0 else "kept" if sizes[group] == 1 else "merged" for group in self.groups
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which patches of one image were kept, merged or dropped, and after which block the image exited."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    stages: tuple[ReductionStage, ...]
    """One for each block that reduced the image's tokens, up to its exit."""
    exit_layer: int
    """Blocks that were run on the image."""

    @property
    def patch_states(self) -> tuple[PatchState, ...]:
        """The state of each patch at the exit."""
        if self.stages:
            return self.stages[-1].patch_states
        rows, columns = self.grid
        return tuple("kept" for _ in range(rows * columns))


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """Scores of the classes in an image at each position."""

    classes: tuple[int, ...]
    """The K classes in increasing order; 0 is the background and k the model's label k - 1."""
    scores: NDArray[np.float16]
    """(K, h, w) unnormalised log-probabilities on an even grid over the whole image."""


@dataclass(frozen=True, slots=True)
class Result:
    """A model's output for one item of a batch."""

    scores: NDArray[np.float32]
    """(C,) class probabilities; (D,) the embedding from a model of task `embed` or `text`; (1 + C,) each
    class's share of the image from a segmentation model, the background first."""
    tokens: int
    """Tokens left after the last block, prefix tokens included."""
    exit_layer: int
    """Blocks that were run on the item."""
    gflops: float
    """Billions of multiply-adds."""
    chosen: Plan | None = None
    """The rung that a content plan chose for this item; None under any other plan."""
    explanation: Explanation | None = None
    """None unless the request asked for an explanation and the model can give one."""
    maps: ClassMaps | None = None
    """Where each class is, from a segmentation model."""
    image_scores: NDArray[np.float32] | None = None
    """(C,) class probabilities of the whole image, from a segmentation model with a classifier on the same
    trunk; None where the image exited early."""
    features: Features | None = None
    """Features for point prompts, if the request asked for them and a click model is served."""
    frames: tuple[int, ...] = ()
    """Numbers of the frames of a clip that were used, in order."""
    over_time: NDArray[np.float32] | None = None
    """(n, C) scores after each of these frames, from a model that classifies clips."""
    frame_maps: tuple[ClassMaps, ...] = ()
    """Where each class is in each of these frames, from a model that segments clips."""

    def maps_at(self, frame: int) -> ClassMaps:
        """The maps of the last used frame up to this one; of the first used frame before that."""
        used = sum(1 for number in self.frames if number <= frame)
        return self.frame_maps[max(0, used - 1)]


@dataclass(frozen=True, slots=True)
class Timings:
    """Time in the engine, in seconds."""

    queue_s: float
    """From admission to the start of the batch."""
    compute_s: float
    """The run of the batch. Includes stacking, unless the batch before it ran meanwhile."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one request, and its cost."""

    result: Result
    plan: Plan
    timings: Timings
    batch_size: int
    reason: Reason = "full"
    """Why the plan was chosen."""
