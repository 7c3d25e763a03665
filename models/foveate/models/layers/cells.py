"""Grids of cells over a grid of patches, as adaptive average pooling divides it."""

from functools import cache

import torch
from torch import Tensor

MAX_STRETCH = 2.0
"""A cell is at most this many times as wide, in patches, as it is high, or the reverse."""


@cache
def cell_grid(count: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the grid with `count` cells over height x width patches; None if there is none.

    Of several grids, the one with the squarest cells; among equals, the one with more columns.
    """
    grids = []
    for rows in range(1, min(height, count) + 1):
        columns, rest = divmod(count, rows)
        if rest or columns > width:
            continue
        across, down = width * rows, height * columns
        stretch = max(across, down) / min(across, down)
        if stretch <= MAX_STRETCH or count == height * width:
            grids.append((stretch, rows, columns))
    return min(grids)[1:] if grids else None


def grid_positions(rows: int, columns: int) -> Tensor:
    """x and y of the centres of a grid's cells: (rows * columns, 2) float32 in 0..1, row by row."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack([x, y], -1).reshape(-1, 2)


@cache
def cell_weights(rows: int, columns: int, height: int, width: int) -> Tensor:
    """The share of each patch in the mean of each cell: (rows * columns, height * width) float32.

    The windows are those of torch's adaptive average pooling; the rows of the result sum to 1.
    """
    with torch.inference_mode(False):  # they may be used in training later
        shares = torch.einsum("ai,bj->abij", _windows(rows, height), _windows(columns, width))
        return shares.reshape(rows * columns, height * width)


def _windows(cells: int, patches: int) -> Tensor:
    """The mean over the window of each cell along one axis: (cells, patches)."""
    weights = torch.zeros(cells, patches)
    for cell in range(cells):
        start, end = cell * patches // cells, -(-(cell + 1) * patches // cells)
        weights[cell, start:end] = 1 / (end - start)
    return weights
