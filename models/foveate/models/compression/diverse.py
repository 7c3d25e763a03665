"""Patches that differ: each next one is the farthest from those that are already kept.

The idea, max-min diversity, is that of "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal
Models" (arXiv 2503.02175), section 3.2; the greedy farthest-point rule is Gonzalez's (1985). Here the most
salient patch is the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    VisualAssignment,
    selection,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "5", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""


@dataclass(frozen=True, slots=True)
class DiverseSelection(Compression):
    """Keeps patches whose smallest distance from each other is large."""

    count: int
    grid: tuple[int, int]
    selects = True

    def macs(self, width: int, question: int) -> float:
        """The distances of all pairs of patches."""
        return float((self.grid[0] * self.grid[1]) ** 2 * width)

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The patches of each picture, in order."""
        positions = patches.positions(self.grid)
        return selection(farthest_points(patches.vectors, patches.salience, self.count), positions)


def farthest_points(vectors: Tensor, salience: Tensor, count: int) -> Tensor:
    """The patches that the greedy rule keeps, first kept first: (B, count) int64.

    vectors: (B, P, D), compared by their cosine. salience: (B, P); the highest decides the first patch. Among
    equals, the first patch wins.
    """
    unit = F.normalize(vectors.float(), dim=2)
    distances = 1 - torch.matmul(unit, unit.transpose(1, 2))
    newest = salience.float().argmax(1, keepdim=True)
    nearest, kept = torch.full(salience.shape, torch.inf, device=vectors.device), [newest]
    for _ in range(count - 1):
        row = distances.gather(1, newest.unsqueeze(2).expand(-1, -1, distances.shape[2])).squeeze(1)
        nearest = torch.minimum(nearest, row).scatter(1, newest, -torch.inf)
        newest = nearest.argmax(1, keepdim=True)
        kept.append(newest)
    return torch.cat(kept, dim=1)


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model."""
    return usual_counts(context)


def build(argument: str | None, context: CompressionContext) -> DiverseSelection:
    """`diverse:49` keeps 49 patches that differ most from each other. Raises BadPlan for another argument."""
    return DiverseSelection(token_count("diverse", argument, context), context.grid)
