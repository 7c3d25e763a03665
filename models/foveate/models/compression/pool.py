"""TokenFLEX: each visual token is the mean of a cell of a grid over the picture.

"TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference" (arXiv 2504.03154), section 3.2:
adaptive average pooling in front of the projector's linear maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.errors import BadPlan
from foveate.models.layers.cells import cell_grid, cell_weights, grid_positions
from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    VisualAssignment,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "6", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""


@dataclass(frozen=True, slots=True)
class CellPooling(Compression):
    """Averages the patches of each cell. Cells that do not divide the patches evenly overlap."""

    count: int
    grid: tuple[int, int]
    cells: tuple[int, int]
    """Rows and columns of cells."""
    needs_vectors = False

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The cells, row by row, at the centres of an even grid."""
        device = patches.positions(self.grid).device
        weights = cell_weights(*self.cells, *self.grid)
        return VisualAssignment(weights.to(device), grid_positions(*self.cells).to(device))


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model."""
    return [text for text in usual_counts(context) if cell_grid(int(text), *context.grid)]


def build(argument: str | None, context: CompressionContext) -> CellPooling:
    """`pool:49` averages the patches in each cell of a grid of 7 x 7.

    The number must be that of a grid whose cells are at most twice as long as they are wide. Raises BadPlan
    for another, naming the nearest that is one.
    """
    count = token_count("pool", argument, context)
    cells = cell_grid(count, *context.grid)
    if cells is None:
        near = min(
            (n for n in range(1, context.patches + 1) if cell_grid(n, *context.grid)),
            key=lambda n: (abs(n - count), n),
        )
        raise BadPlan(
            f"pool takes the number of cells of a grid, and {count} is none; "
            f"the nearest that is one is pool:{near}"
        )
    return CellPooling(count, context.grid, cells)
