"""Grids of cells over patches."""

import math

import pytest
import torch
import torch.nn.functional as F

from foveate.models.layers.cells import cell_grid, cell_weights, grid_positions


def test_squares_and_their_neighbours_have_the_grids_of_the_training() -> None:
    for rows in range(1, 15):
        assert cell_grid(rows * rows, 14, 14) == (rows, rows)
        if rows < 14:
            assert cell_grid(rows * (rows + 1), 14, 14) == (rows, rows + 1)


@pytest.mark.parametrize("patches", [(14, 14), (4, 9), (9, 4), (2, 30)])
def test_a_grid_fits_into_the_patches_with_cells_that_are_not_long(patches: tuple[int, int]) -> None:
    height, width = patches
    for count in range(1, height * width + 1):
        grid = cell_grid(count, height, width)
        if grid is None:
            continue
        rows, columns = grid
        assert rows * columns == count and rows <= height and columns <= width
        assert abs(math.log2(width / columns * rows / height)) <= 1 + 1e-9 or count == height * width
    assert cell_grid(height * width, height, width) == patches
    assert cell_grid(height * width + 1, height, width) is None


def test_a_count_that_only_long_cells_have_has_none() -> None:
    assert [cell_grid(count, 14, 14) for count in (3, 13, 17, 195)] == [None] * 4


def test_weights_are_those_of_adaptive_pooling_and_sum_to_one() -> None:
    x = torch.randn(1, 5, 6, 8)
    for rows, columns in ((1, 1), (2, 3), (4, 5), (6, 8)):
        weights = cell_weights(rows, columns, 6, 8)
        pooled = F.adaptive_avg_pool2d(x, (rows, columns)).flatten(2)
        torch.testing.assert_close(x.flatten(2) @ weights.T, pooled)
        torch.testing.assert_close(weights.sum(1), torch.ones(rows * columns))


def test_weights_of_an_inference_serve_a_training_too() -> None:
    with torch.inference_mode():
        cell_weights(2, 3, 11, 13)  # kept from here on
    features = torch.ones(11 * 13, requires_grad=True)
    (cell_weights(2, 3, 11, 13) @ features).sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None and features.grad.sum() == pytest.approx(6)


def test_positions_are_x_and_y_of_centres_row_by_row() -> None:
    assert grid_positions(1, 2).tolist() == [[0.25, 0.5], [0.75, 0.5]]
    assert grid_positions(2, 1).tolist() == [[0.5, 0.25], [0.5, 0.75]]
