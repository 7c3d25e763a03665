"""The reducer protocol: what a token reducer may see, what it decides, and what it may know of its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Protocol

from torch import Tensor, nn

from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.tokens import Assignment, Tokens


class Needs(Flag):
    """What a reducer has to see of a block's attention; the trunk computes no more than that."""

    NOTHING = 0
    CLASS_ROW = auto()
    FULL = auto()
    KEYS = auto()
    VALUES = auto()


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention information of one block, after its softmax."""

    class_row: Tensor | None = None
    """(B, N) float32: the class token's attention to every token, averaged over heads."""
    full: Tensor | None = None
    """(B, H, N, N): row by row what each token attends to."""
    keys: Tensor | None = None
    """(B, H, N, d)."""
    values: Tensor | None = None
    """(B, H, N, d)."""


class Reducer(Protocol):
    """Decides which tokens go on; the trunk applies the decision.

    Called at each block where `needs` says it has work. Pure: no state is kept between calls, and no
    row of a batch may influence another. A reducer subclasses this for the usual answers below.
    """

    point: ReductionPoint = ReductionPoint.MIDDLE
    """Where in a block it acts; AHEAD always sees the full attention."""
    proportional: bool = False
    """Attention is weighted by what each token stands for (ToMe, equation 1)."""
    adaptive: bool = False
    """The count differs from picture to picture; `after` is then the most there can be."""

    def needs(self, block: int) -> Needs | None:
        """What it must see at this block (counted from 0); None: it does nothing there."""
        ...

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens left after each block, prefix included, for an input of `tokens` of them."""
        counts = []
        for block in range(depth):
            if self.needs(block) is not None:
                tokens = self.left(tokens, prefix)
            counts.append(tokens)
        return tuple(counts)

    def left(self, tokens: int, prefix: int) -> int:
        """Tokens that a block leaves of `tokens` where it has work. Who tells `after` need not tell this."""
        return tokens

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """The assignment for this block. tokens.x: (B, N, D), in the MIDDLE the features that attention
        has updated, else those that enter the block."""
        ...


Schedule = tuple[tuple[int, int], ...]
"""For each block, the tokens kept by pruning and then by merging, prefix included (DiffRate)."""


class PatchClassifier(Protocol):
    """A head that names patches between blocks (DToP)."""

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Patches (B, P, D) as that block, counted from 1, left them, to the head's space (B, P, W)."""
        ...

    def classify_patches(self, canvas: Tensor) -> Tensor:
        """Class scores of each patch: (B, P, W) to (B, P, C)."""
        ...


class ReducerContext(Protocol):
    """What a reducer may know of the model it is built for."""

    @property
    def config(self) -> ViTConfig: ...

    @property
    def gates(self) -> nn.ModuleDict:
        """Trained gates by the number of blocks before them, as text (IA-RED); empty without any."""
        ...

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """Schedules found for this model by name, which is a GFLOPs target as in ``2.9`` (DiffRate)."""
        ...

    @property
    def dense(self) -> PatchClassifier | None:
        """The head that names patches (DToP); None where the model names whole pictures."""
        ...


@dataclass(frozen=True)
class UntrainedContext:
    """A model of which nothing is known but its shape: enough for what needs no training."""

    config: ViTConfig
    gates: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    dense: PatchClassifier | None = None
