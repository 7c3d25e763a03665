"""The protocol of methods that decide which visual tokens a language model gets of a picture.

A method gets the picture's patches and returns an assignment of patches to visual tokens. It decides; what
makes the tokens, such as a projector, applies. It knows no model: vectors of any vision-language model do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.cells import grid_positions
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Reducer
from foveate.models.layers.threshold_merging import MergeThresholds

COUNTS = (4, 9, 16, 25, 49, 100)
"""Numbers of visual tokens in the plans that profiling tries."""
_COUNT = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """The tokens of the question about each picture."""

    embeddings: Tensor
    """(B, T, D), in the space of the patches' vectors."""
    mask: Tensor
    """(B, T) bool: False for padding. A row without a token is a picture without a question."""


@dataclass(frozen=True, slots=True)
class PatchVectors:
    """The patches of B pictures."""

    vectors: Tensor
    """(B, P, D): what patches are compared by, such as the visual tokens of the full plan. Row by row."""
    salience: Tensor
    """(B, P): how much each patch matters without a question; higher is more."""
    grid: tuple[int, int]
    """Rows and columns. Their product is P."""
    question: QuestionTokens | None = None
    """For a method whose `needs_question` is True."""
    groups: Tensor | None = None
    """(B, P) int64: equal numbers mark patches that the tower has merged into one token, as those of
    `Tokens.source` do. None: the tower has merged none."""

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """x and y of the patches' centres: (P, 2) float32 in 0..1.

        Raises ValueError unless the patches have this grid, which the method was built for.
        """
        if self.grid != grid or self.vectors.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"the method was built for {grid} patches, and got {self.grid}")
        return grid_positions(*grid).to(self.vectors.device)


@dataclass(frozen=True, slots=True)
class VisualAssignment:
    """What each of K visual tokens is made of. Without B, it is the same for all pictures."""

    weights: Tensor
    """(K, P) or (B, K, P) float32, at least 0: the share of each patch in the mean of each token. Rows sum
    to 1."""
    positions: Tensor
    """(K, 2) or (B, K, 2) float32: x and y of the tokens, 0 to 1."""
    kept: Tensor | None = None
    """(K,) or (B, K) int64, ascending: the patch that each token is. None where tokens are means."""

    @property
    def counts(self) -> Tensor:
        """The number of patches that each token stands for: (K,) or (B, K) float32."""
        return (self.weights > 0).sum(-1).float()

    def apply(self, features: Tensor) -> Tensor:
        """The mean features of each token: (B, P, D) to (B, K, D)."""
        if self.kept is None:
            return torch.matmul(self.weights, features.float()).to(features.dtype)
        index = self.kept.expand(len(features), -1).unsqueeze(-1)
        return features.gather(1, index.expand(-1, -1, features.shape[2]))


def selection(kept: Tensor, positions: Tensor) -> VisualAssignment:
    """Each token is one patch. kept: (K,) or (B, K) int64, each patch at most once; positions: (P, 2)."""
    kept = kept.sort(-1).values
    return VisualAssignment(F.one_hot(kept, len(positions)).float(), positions[kept], kept)


def clusters(owners: Tensor, count: int, positions: Tensor) -> VisualAssignment:
    """Each token is the mean of the patches with one owner, in the order of the owners.

    owners: (B, P) int64, the patch that represents each patch, and itself; -1 for a dropped patch. Each row
    has `count` different ones. positions: (P, 2). A token is at the mean of its patches' positions.
    """
    order = torch.arange(owners.shape[1], device=owners.device)
    numbers = ((owners == order).cumsum(1) - 1).clamp(min=0)
    tokens = numbers.gather(1, owners.clamp(min=0))
    members = F.one_hot(tokens, count).float() * (owners >= 0).unsqueeze(-1)
    weights = (members / members.sum(1, keepdim=True)).transpose(1, 2)
    return VisualAssignment(weights, torch.matmul(weights, positions))


@dataclass(frozen=True, slots=True)
class CompressionContext:
    """What a method may know of a model when it is built."""

    grid: tuple[int, int]
    """Rows and columns of patches at full."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    thresholds: Mapping[int, MergeThresholds] = field(default_factory=dict)
    """Thresholds of merging inside the tower, by the number of visual tokens (DyMU)."""

    @property
    def patches(self) -> int:
        """Patches at full."""
        return self.grid[0] * self.grid[1]


class Compression(Protocol):
    """Decides what the visual tokens of a picture are.

    A method is pure: it keeps no state between calls, and no picture of a batch influences another. It gives
    the same number of tokens for every picture. With as many tokens as patches it is the identity. It
    computes in float32, on the device of the vectors. Methods subclass this protocol to inherit its defaults.
    """

    count: int
    """Visual tokens of a picture."""
    grid: tuple[int, int]
    """Rows and columns of patches that it takes: those at full, unless the method shrinks the picture."""
    selects: bool = False
    """Every visual token is one patch: all assignments have `kept`."""
    needs_vectors: bool = True
    """The choice depends on the patches' vectors. Where it does not, and tokens are means, they are not
    computed: the method gets vectors of another space."""
    needs_question: bool = False
    """The choice depends on the question. Where it does not, the visual tokens of a picture, and the language
    model's keys and values of them, can be cached for all questions."""
    unmerges: bool = False
    """The language model attends to a token as to the patches that it stands for: see `vlm.unmerging`."""

    def reducer(self, tower: ViTConfig) -> Reducer | None:
        """The token reducer that the tower runs under; None for a tower that keeps all patches."""
        return None

    def macs(self, width: int, question: int) -> float:
        """Multiply-adds of its own work on one picture: the matrix products that compare and mix.

        width: numbers in a vector. question: tokens of the question.
        """
        return 0.0

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The assignment of the patches to `count` visual tokens.

        Raises ValueError if the patches do not have the grid that the method takes.
        """
        ...


def token_count(method: str, argument: str | None, context: CompressionContext) -> int:
    """The number of visual tokens that the argument of a method says.

    Raises BadPlan unless it is from 1 to the number of patches.
    """
    count = int(argument) if argument and _COUNT.fullmatch(argument) else 0
    if not 1 <= count <= context.patches:
        example = min(49, context.patches)
        raise BadPlan(
            f"{method} takes a number of visual tokens from 1 to {context.patches}, as in "
            f"{method}:{example}; got {(argument or '')[:40]!r}"
        )
    return count


def usual_counts(context: CompressionContext) -> list[str]:
    """COUNTS below the number of patches, as arguments."""
    return [str(count) for count in COUNTS if count < context.patches]
