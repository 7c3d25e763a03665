"""The point prompt head: its inputs, its maps, and its cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads.dense import STRIDE
from foveate.models.heads.point_prompts import DISC, NEAR, STEP, PointPromptHead, PointPromptSpec, point_maps
from tests.support.dense_heads import SPEC
from tests.support.point_prompt_heads import POINT_ROWS, feature_maps, point_prompt_head, points

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@pytest.mark.parametrize("side", [16, 64, 96])
def test_the_mask_covers_the_image(side: int) -> None:
    mask = point_prompt_head()(*feature_maps(2, side), points(*POINT_ROWS[:2]))
    assert mask.shape == (2, 1, side // STRIDE, side // STRIDE)
    assert mask.isfinite().all()


def test_rows_and_padding_do_not_influence_other_rows() -> None:
    head, (coarse, fine) = point_prompt_head(), feature_maps(3)
    together = head(coarse, fine, points(*POINT_ROWS))
    for row, row_points in enumerate(POINT_ROWS):
        alone = head(coarse[row : row + 1], fine[row : row + 1], points(row_points))
        assert torch.allclose(together[row], alone[0], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_the_mask_depends_on_positions_and_labels_of_all_points_but_not_on_their_order() -> None:
    head, features = point_prompt_head(), feature_maps(1)
    rows = [*POINT_ROWS[2]]
    mask = head(*features, points(rows))
    assert torch.allclose(mask, head(*features, points(rows[::-1])), atol=1e-5)
    for other in (rows[:-1], [(0.1, 0.1, 1.0), *rows[1:]], [*rows[:2], (0.5, 0.5, 1.0), rows[3]]):
        assert (mask - head(*features, points(other))).abs().max() > 0.02


def test_point_maps_are_discs_and_surroundings() -> None:
    maps = point_maps(points(*POINT_ROWS), 8)
    assert maps.shape == (3, 4, 8, 8)
    for row, row_points in enumerate(POINT_ROWS):
        for channel, label in ((0, 1.0), (1, 0.0)):
            of_label = [(8 * x, 8 * y) for x, y, other in row_points if other == label]
            for y in range(8):
                for x in range(8):
                    cell = (x + 0.5, y + 0.5)
                    distance = min((math.dist(cell, point) for point in of_label), default=math.inf)
                    disc, near = maps[row, channel, y, x], maps[row, channel + 2, y, x]
                    assert float(disc) == pytest.approx(min(1, max(0, DISC + 0.5 - distance)), abs=1e-5)
                    assert float(near) == pytest.approx(math.exp(-distance / NEAR), abs=1e-5)


def test_similarity_of_a_cell_is_the_cosine_to_the_most_similar_point() -> None:
    head = point_prompt_head()
    keys = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(4))
    maps = head._similarity(keys, points(*POINT_ROWS))
    for row, row_points in enumerate(POINT_ROWS):
        for group in range(2):
            part = keys[row, 4 * group : 4 * group + 4]
            for label in (1.0, 0.0):
                similarities = [
                    F.cosine_similarity(
                        part, part[:, min(7, int(8 * y)), min(7, int(8 * x)), None, None], dim=0
                    )
                    for x, y, other in row_points
                    if other == label
                ]
                expected = torch.stack(similarities).amax(0) if similarities else torch.full((8, 8), -1.0)
                assert torch.allclose(maps[row, group + 2 * int(label == 0)], expected, atol=1e-4)


def test_the_cost_is_that_of_the_convolutions_and_one_comparison() -> None:
    head = PointPromptHead(SPEC, 16, PointPromptSpec())
    counted = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d)
        counted += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)

    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    head(*feature_maps(1, 96), points([(0.5, 0.5, 1.0)]))
    cells = (96 // STEP) ** 2
    assert head.macs(6) == counted + cells * PointPromptSpec().width


def test_a_patch_size_that_is_no_multiple_of_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="cells of 8"):
        PointPromptHead(SPEC, 12, PointPromptSpec())
