"""Evenly spaced patches: the baseline without chance, scores or means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.plan import sampled_frames
from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    VisualAssignment,
    selection,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "7", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""


@dataclass(frozen=True, slots=True)
class UniformSelection(Compression):
    """Keeps patches in evenly spaced rows, evenly spaced within each row."""

    count: int
    grid: tuple[int, int]
    selects = True
    needs_vectors = False

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The same patches of every picture, in order."""
        positions = patches.positions(self.grid)
        return selection(evenly_spaced(self.count, *self.grid).to(positions.device), positions)


def evenly_spaced(count: int, height: int, width: int) -> Tensor:
    """`count` patches, about as far apart along rows as along columns: (count,) int64, ascending."""
    rows = min(height, max(round(math.sqrt(count * height / width)), -(-count // width)))
    kept = []
    for number, row in enumerate(sampled_frames(height, rows)):
        columns = (number + 1) * count // rows - number * count // rows
        kept += [row * width + column for column in sampled_frames(width, columns)]
    return torch.tensor(kept)


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model."""
    return usual_counts(context)


def build(argument: str | None, context: CompressionContext) -> UniformSelection:
    """`uniform:49` keeps 49 evenly spaced patches. Raises BadPlan for another argument."""
    return UniformSelection(token_count("uniform", argument, context), context.grid)
