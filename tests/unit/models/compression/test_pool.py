"""Pooling of the patches in cells."""

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import BadPlan
from foveate.models import compression
from foveate.models.layers.visual_tokens import CompressionContext, PatchVectors

FULL = CompressionContext((14, 14))


@pytest.mark.parametrize(
    ("count", "cells"), [(4, (2, 2)), (12, (3, 4)), (49, (7, 7)), (100, (10, 10)), (20, (4, 5))]
)
def test_a_cell_is_the_mean_of_adaptive_pooling(count: int, cells: tuple[int, int]) -> None:
    vectors = torch.randn(2, 196, 8, generator=torch.Generator().manual_seed(0))
    assignment = compression.create(f"pool:{count}", FULL)(PatchVectors(vectors, vectors[:, :, 0], (14, 14)))
    pooled = F.adaptive_avg_pool2d(vectors.transpose(1, 2).reshape(2, 8, 14, 14), cells)
    torch.testing.assert_close(assignment.apply(vectors), pooled.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("grid", "count", "nearest"),
    [((14, 14), 17, 16), ((14, 14), 195, 196), ((14, 14), 5, 4), ((14, 14), 47, 48), ((3, 7), 20, 21)],
)
def test_a_count_without_a_grid_is_refused_with_the_nearest_that_has_one(
    grid: tuple[int, int], count: int, nearest: int
) -> None:
    context = CompressionContext(grid)
    with pytest.raises(BadPlan, match=f"nearest that is one is pool:{nearest}$"):
        compression.create(f"pool:{count}", context)
    assert compression.create(f"pool:{nearest}", context).count == nearest
