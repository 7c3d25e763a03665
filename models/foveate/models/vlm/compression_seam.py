"""Stands in for foveate.models.compression until its methods are merged: `pool` and `none` alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.compression.cells import cell_grid, cell_weights
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Reducer
from foveate.models.vlm.projector import grid_positions


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """The tokens of the question about each picture."""

    embeddings: Tensor
    """(B, T, D)."""
    mask: Tensor
    """(B, T) bool: False for padding."""


@dataclass(frozen=True, slots=True)
class PatchVectors:
    """The patches of B pictures."""

    vectors: Tensor
    """(B, P, D)."""
    salience: Tensor
    """(B, P)."""
    grid: tuple[int, int]
    question: QuestionTokens | None = None
    groups: Tensor | None = None


@dataclass(frozen=True, slots=True)
class VisualAssignment:
    """What each of K visual tokens is made of."""

    weights: Tensor
    """(K, P) or (B, K, P) float32."""
    positions: Tensor
    """(K, 2) or (B, K, 2) float32."""
    kept: Tensor | None = None
    """(K,) or (B, K) int64: the patch that each token is. None where tokens are means."""


@dataclass(frozen=True, slots=True)
class CompressionContext:
    """What a method may know of a model when it is built."""

    grid: tuple[int, int]
    patch_size: int = 16


@dataclass(frozen=True, slots=True)
class Compression:
    """Cells of a grid, or all patches."""

    count: int
    grid: tuple[int, int]
    cells: tuple[int, int]
    needs_question: bool = False
    unmerges: bool = False

    def reducer(self, tower: ViTConfig) -> Reducer | None:
        """The token reducer that the tower runs under."""
        return None

    def macs(self, width: int, question: int) -> float:
        """Multiply-adds of its own work on one picture."""
        return 0.0

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The assignment of the patches to `count` visual tokens."""
        weights = cell_weights(*self.cells, *self.grid).to(patches.vectors.device)
        positions = grid_positions(*self.cells).to(patches.vectors.device)
        kept = torch.arange(self.count) if self.cells == self.grid else None
        return VisualAssignment(weights, positions, kept)


def create(spec: str, context: CompressionContext) -> Compression:
    """The method that a plan names. Raises BadPlan."""
    name, _, argument = spec.partition(":")
    if name == "none":
        return Compression(context.grid[0] ** 2, context.grid, context.grid)
    cells = cell_grid(int(argument), context.grid[0]) if name == "pool" and argument.isdecimal() else None
    if cells is None:
        raise BadPlan(f"there is no compression method {spec[:40]!r}")
    return Compression(int(argument), context.grid, cells)
