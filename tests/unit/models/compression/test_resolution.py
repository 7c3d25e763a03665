"""The budget through the size of the picture."""

import pytest
import torch

from foveate.core.errors import BadPlan
from foveate.models.compression.resolution import build, candidates, smaller_grids
from foveate.models.layers.visual_tokens import CompressionContext, PatchVectors


@pytest.mark.parametrize(("count", "side"), [(196, 224), (100, 160), (49, 112), (16, 64), (4, 32)])
def test_the_picture_has_the_size_with_that_many_patches(count: int, side: int) -> None:
    method = build(str(count), CompressionContext((14, 14)))
    assert method.image_size == (side, side)
    grid = (side // 16, side // 16)
    vectors = torch.randn(2, count, 4)
    assert method(PatchVectors(vectors, vectors[:, :, 0], grid)).apply(vectors).shape == (2, count, 4)


def test_the_shape_of_the_picture_stays() -> None:
    assert smaller_grids(6, 9) == {6: (2, 3), 24: (4, 6), 54: (6, 9)}
    assert build("24", CompressionContext((6, 9), 14)).image_size == (56, 84)
    assert candidates(CompressionContext((14, 14))) == ["4", "9", "16", "25", "49", "100"]


def test_another_count_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadPlan, match=r"nearest that is one is resolution:49$"):
        build("50", CompressionContext((14, 14)))
