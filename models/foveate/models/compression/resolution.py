"""FastVLM: the budget through the size of the picture.

"FastVLM: Efficient Vision Encoding for Vision Language Models" (arXiv 2412.13303), section 3: the resolution
of the input sets the number of visual tokens, and with it the cost of encoder and prefill alike. As a knob it
needs no training, so it works for every tower that takes several sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate.core.errors import BadPlan
from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    VisualAssignment,
    selection,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "4", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""


@dataclass(frozen=True, slots=True)
class SmallerPicture(Compression):
    """Takes the patches of a smaller picture, and keeps them all."""

    count: int
    grid: tuple[int, int]
    """Rows and columns of patches of the smaller picture."""
    patch_size: int
    selects = True
    needs_vectors = False

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the picture that the tower gets, in pixels."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """All patches of the smaller picture, in order."""
        positions = patches.positions(self.grid)
        return selection(torch.arange(self.count, device=positions.device), positions)


def smaller_grids(height: int, width: int) -> dict[int, tuple[int, int]]:
    """The grids of a picture that is shrunk without a change of its shape, by their number of patches."""
    step = math.gcd(height, width)
    return {
        height * width * n * n // step**2: (height * n // step, width * n // step) for n in range(1, step + 1)
    }


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model."""
    return [text for text in usual_counts(context) if int(text) in smaller_grids(*context.grid)]


def build(argument: str | None, context: CompressionContext) -> SmallerPicture:
    """`resolution:49` shrinks the picture until it has 49 patches: for patches of 16 pixels, to 112 x 112.

    Raises BadPlan unless a picture of the same shape has this number of patches.
    """
    count, grids = token_count("resolution", argument, context), smaller_grids(*context.grid)
    if count not in grids:
        near = min(grids, key=lambda n: (abs(n - count), n))
        raise BadPlan(
            f"resolution takes the number of patches of a smaller picture of the same shape, and {count} is "
            f"none; the nearest that is one is resolution:{near}"
        )
    return SmallerPicture(count, grids[count], context.patch_size)
