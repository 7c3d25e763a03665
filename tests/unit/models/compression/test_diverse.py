"""Selection of patches that differ."""

import pytest
import torch
import torch.nn.functional as F

from foveate.models import compression
from foveate.models.compression.diverse import farthest_points
from foveate.models.layers.visual_tokens import CompressionContext
from tests.support.pictures import clustered

FULL = CompressionContext((14, 14))


def covered(text: str, groups: int, seed: int) -> float:
    """The share of the kinds of patches among the kept ones."""
    patches, kinds = clustered(groups, seed)
    kept = compression.create(text, FULL)(patches).kept
    assert kept is not None
    return len(set(kinds[kept.flatten()].tolist())) / groups


@pytest.mark.parametrize("count", [9, 16])
def test_it_covers_more_kinds_of_patches_than_random_and_uniform_ones(count: int) -> None:
    seeds = range(20)
    diverse, random, uniform = (
        sum(covered(f"{name}:{count}", 8, seed) for seed in seeds) / len(seeds)
        for name in ("diverse", "random", "uniform")
    )
    assert diverse == 1.0
    assert diverse > random + 0.2 and diverse > uniform + 0.2


def test_each_patch_is_the_farthest_from_those_before() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors, salience = torch.randn(2, 40, 6, generator=draw), torch.rand(2, 40, generator=draw)
    for row, order in enumerate(farthest_points(vectors, salience, 12).tolist()):
        assert order[0] == int(salience[row].argmax())
        unit = F.normalize(vectors[row], dim=1)
        for number in range(1, 12):
            nearest = (1 - unit @ unit[order[:number]].T).amin(1)
            nearest[order[:number]] = -1
            assert order[number] == int(nearest.argmax())


def test_equal_patches_are_kept_in_order() -> None:
    assert farthest_points(torch.ones(1, 6, 3), torch.zeros(1, 6), 4).tolist() == [[0, 1, 2, 3]]
