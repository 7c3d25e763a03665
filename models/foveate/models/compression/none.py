"""No compression: every patch is a visual token."""

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
)

EXAMPLES: tuple[str | None, ...] = (None,)
"""Arguments the contract tests use; the first is the identity of 36 patches."""


@dataclass(frozen=True, slots=True)
class AllPatches(Compression):
    """Keeps all patches. This is full compute."""

    count: int
    grid: tuple[int, int]
    selects = True
    needs_vectors = False

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """All patches, in order."""
        positions = patches.positions(self.grid)
        return selection(torch.arange(self.count, device=positions.device), positions)


def candidates(context: CompressionContext) -> Sequence[None]:
    """No compression."""
    return (None,)


def build(argument: str | None, context: CompressionContext) -> AllPatches:
    """`none` makes every patch a visual token. Raises BadPlan for any argument."""
    if argument is not None:
        raise BadPlan(f"the compression method none takes no argument, got {argument[:40]!r}")
    return AllPatches(context.patches, context.grid)
