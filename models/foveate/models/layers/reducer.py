"""The reducer protocol: the reducer's inputs, its decision, and the model context it is built with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Protocol

from torch import Tensor, nn

from foveate.core.profile import Schedule as Schedule
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.tokens import Assignment, Tokens


class Needs(Flag):
    """Attention information that a reducer needs from a block. The trunk computes no more than that."""

    NOTHING = 0
    CLASS_ROW = auto()
    FULL = auto()
    KEYS = auto()
    VALUES = auto()


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention information of one block, after its softmax. Fields that were not needed are None."""

    class_row: Tensor | None = None
    """(B, N) float32: the class token's attention to every token, averaged over heads."""
    full: Tensor | None = None
    """(B, H, N, N): attention weights, one row for each query token."""
    keys: Tensor | None = None
    """(B, H, N, d)."""
    values: Tensor | None = None
    """(B, H, N, d)."""


class Reducer(Protocol):
    """Decides which tokens stay. The trunk applies the decision.

    The trunk calls a reducer at each block for which `needs` is not None. A reducer is pure: it keeps no
    state between calls, and no row of a batch influences another. Reducers subclass this protocol to inherit
    its defaults.
    """

    point: ReductionPoint = ReductionPoint.MIDDLE
    """The point in a block at which it acts. At AHEAD it always gets the full attention."""
    proportional: bool = False
    """Attention is weighted by the number of input tokens that each token represents (ToMe, equation 1)."""
    adaptive: bool = False
    """The token count differs between images. `after` is then an upper bound."""

    def needs(self, block: int) -> Needs | None:
        """The attention information it needs at this block (counted from 0). None: it does nothing there."""
        ...

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens after each of `depth` blocks, prefix included, for an input of `tokens` tokens."""
        counts = []
        for block in range(depth):
            if self.needs(block) is not None:
                tokens = self.remaining(tokens, prefix)
            counts.append(tokens)
        return tuple(counts)

    def mean_after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """As `after`, for an average image; the upper bound of an adaptive reducer that does not know it."""
        return self.after(tokens, prefix, depth)

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one block that reduces `tokens` tokens, prefix included.

        A reducer that overrides `after` does not need to override this.
        """
        return tokens

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Multiply-adds of its own work at this block: the matrix products that rank, match and mix tokens.

        patches: patch tokens of the image that enter the trunk. tokens: tokens that enter this block, prefix
        included.
        """
        return 0.0

    def drops(self, block: int) -> bool:
        """Whether patches may leave at this block without a token that represents them from then on.

        A dense head reads them once more before they leave.
        """
        return False

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """The assignment for this block.

        tokens.x: (B, N, D). At MIDDLE these are the features after the attention update, at the other points
        the features that enter the block.
        """
        ...


def reducer_macs(reducer: Reducer, config: ViTConfig, tokens: int, after: Sequence[int]) -> float:
    """Multiply-adds of a reducer's own work. `tokens` enter the first block; `after` leave each block."""
    patches, entering = tokens - config.prefix, (tokens, *after)
    return sum(
        reducer.macs(config, patches, entering[block], block)
        for block in range(len(after))
        if reducer.needs(block) is not None
    )


class PatchClassifier(Protocol):
    """A head that classifies patches between blocks (DToP)."""

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Map patches (B, P, D) after `block` blocks to patch features (B, P, W) of the head."""
        ...

    def classify_patches(self, features: Tensor) -> Tensor:
        """Class scores of each patch: patch features (B, P, W) to (B, P, C)."""
        ...

    def patch_macs(self, classify: bool) -> float:
        """Multiply-adds of reading a patch, and of classifying it if `classify`."""
        ...


class ReducerContext(Protocol):
    """The parts of a model that a reducer may use when it is built."""

    @property
    def config(self) -> ViTConfig:
        """The model's configuration."""
        ...

    @property
    def gates(self) -> nn.ModuleDict:
        """Trained gates (IA-RED). The key is the number of blocks before the gate, as text."""
        ...

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """Schedules searched for this model (DiffRate). The key is a share or GFLOPs, as in ``2.9``."""
        ...

    @property
    def dense(self) -> PatchClassifier | None:
        """The head that classifies patches (DToP). None for a model without a dense head."""
        ...


@dataclass(frozen=True)
class UntrainedContext:
    """The context of a model of which only the configuration is known. It suffices for untrained reducers."""

    config: ViTConfig
    gates: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    dense: PatchClassifier | None = None
