"""Calibration of merge thresholds."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.models.layers.threshold_merging import NEVER, MergeThresholds, ThresholdMerging
from foveate.models.profiling.merge_calibration import calibrate
from foveate.models.vit.vit import ElasticViT
from tests.support.references import PLAIN, build

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def images(batch: int = 8) -> Tensor:
    """Pictures from plain to busy."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 3, 96, 96, generator=draw)
    return noise * torch.linspace(0.2, 2, batch)[:, None, None, None]


def kept(tower: ElasticViT, batch: Tensor, thresholds: MergeThresholds) -> Tensor:
    tokens, reducer = tower.embed(batch), ThresholdMerging(thresholds.thresholds, thresholds.count)
    for index, block in enumerate(tower.blocks):
        tokens = block(tokens, reducer, index)
    return tokens.present - tokens.prefix


@pytest.mark.parametrize("count", [4, 12, 24])
def test_the_average_number_of_tokens_is_near_the_count_and_none_is_below(count: int) -> None:
    tower, pictures = build(PLAIN), images()
    thresholds = calibrate(tower, [pictures[:3], pictures[3:]], count)
    left = kept(tower, pictures, thresholds)
    assert float(left.float().mean()) == pytest.approx(thresholds.tokens[-1])
    assert left.min() >= count
    assert count <= thresholds.tokens[-1] < count + 0.25 * (36 - count)
    assert list(thresholds.tokens) == sorted(thresholds.tokens, reverse=True)
    assert thresholds == calibrate(tower, [pictures], count)


def test_pictures_keep_different_numbers_of_tokens_before_the_last_blocks() -> None:
    tower, pictures = build(PLAIN), images()
    thresholds = calibrate(tower, [pictures], 12)
    tokens, reducer = tower.embed(pictures), ThresholdMerging(thresholds.thresholds, 12)
    for index in range(3):
        tokens = tower.blocks[index](tokens, reducer, index)
    assert len(set(tokens.present.tolist())) > 2
    assert float(tokens.present.float().mean() - 1) == pytest.approx(24, abs=0.5)


def test_blocks_before_the_first_do_not_merge() -> None:
    thresholds = calibrate(build(PLAIN), [images()], 12, first=4)
    assert thresholds.thresholds[:4] == (NEVER,) * 4
    assert thresholds.tokens[:4] == (36.0,) * 4
    assert thresholds.tokens[4] == pytest.approx(24, abs=0.5)


def test_as_many_tokens_as_patches_need_no_merging() -> None:
    assert calibrate(build(PLAIN), [images()], 36).thresholds == (NEVER,) * 6


def test_equal_patches_end_at_the_count() -> None:
    tower = build(PLAIN)
    assert tower.pos_embed is not None
    tower.pos_embed.zero_()
    thresholds = calibrate(tower, [torch.zeros(2, 3, 96, 96)], 9)
    assert thresholds.tokens[-1] == 9


@pytest.mark.parametrize(("count", "first"), [(37, 0), (9, 6), (9, -1)])
def test_what_cannot_be_calibrated_is_refused(count: int, first: int) -> None:
    with pytest.raises(ValueError, match="this tower has 1 prefix tokens, 36 patches and 6 blocks"):
        calibrate(build(PLAIN), [images(1)], count, first)


def test_a_tower_without_a_prefix_token_is_refused() -> None:
    tower = build(replace(PLAIN, class_token=False, pool="avg", fc_norm=True))
    with pytest.raises(ValueError, match="this tower has 0 prefix tokens"):
        calibrate(tower, [images(1)], 9)
