"""Grids of cells over a grid of patches, as adaptive average pooling divides it."""

import math
from functools import cache

import torch
from torch import Tensor


def cell_grid(count: int, side: int) -> tuple[int, int] | None:
    """Rows and columns of the grid with `count` cells, as square as can be; None if there is none.

    A grid has at most `side` rows and columns, and at most twice as many columns as rows.
    """
    for rows in range(min(side, math.isqrt(count)), 0, -1):
        columns, rest = divmod(count, rows)
        if not rest and columns <= min(side, 2 * rows):
            return rows, columns
    return None


@cache
def cell_weights(rows: int, columns: int, height: int, width: int) -> Tensor:
    """The share of each patch in the mean of each cell: (rows * columns, height * width) float32.

    The windows are those of torch's adaptive average pooling; the rows of the result sum to 1.
    """
    return torch.einsum("ai,bj->abij", _windows(rows, height), _windows(columns, width)).reshape(
        rows * columns, height * width
    )


def _windows(cells: int, patches: int) -> Tensor:
    """The mean over the window of each cell along one axis: (cells, patches)."""
    weights = torch.zeros(cells, patches)
    for cell in range(cells):
        start, end = cell * patches // cells, -(-(cell + 1) * patches // cells)
        weights[cell, start:end] = 1 / (end - start)
    return weights
