"""Merging of patches to a fixed number."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models import compression
from foveate.models.compression.merge import PatchMerging, build, merge_rounds
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.threshold_merging import MergeThresholds, ThresholdMerging
from foveate.models.layers.visual_tokens import CompressionContext, PatchVectors
from tests.support.pictures import clustered
from tests.support.references import PLAIN, random_images
from tests.support.references import build as build_tower

FULL = CompressionContext((14, 14))


def reference_round(groups: list[list[int]], vectors: Tensor, merging: int) -> list[list[int]]:
    """One round on one picture: the strongest edges between tokens at even and at odd numbers merge."""
    means = [F.normalize(vectors[group].mean(0), dim=0) for group in groups]
    edges = []
    for even in range(0, len(groups), 2):
        similarity = [float(means[even] @ means[odd]) for odd in range(1, len(groups), 2)]
        edges.append((max(similarity), even, 2 * similarity.index(max(similarity)) + 1))
    target = {even: odd for _, even, odd in sorted(edges, reverse=True)[:merging]}
    joined = [list(group) for group in groups]
    for even, odd in target.items():
        joined[odd] += groups[even]
    return sorted(sorted(group) for number, group in enumerate(joined) if number not in target)


@pytest.mark.parametrize("count", [30, 17, 5, 1])
def test_rounds_merge_the_most_similar_tokens(count: int) -> None:
    vectors = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(2))
    owners = merge_rounds(vectors, torch.arange(40).expand(2, -1), count)
    for row in range(2):
        groups = [[patch] for patch in range(40)]
        while len(groups) > count:
            groups = reference_round(groups, vectors[row], min(len(groups) - count, max(1, len(groups) // 4)))
        merged = [
            (owners[row] == first).nonzero().flatten().tolist() for first in sorted(set(owners[row].tolist()))
        ]
        assert merged == groups


def test_kinds_of_patches_are_not_mixed_while_there_are_tokens_enough() -> None:
    for seed in range(5):
        patches, kinds = clustered(6, seed)
        weights = compression.create("merge:25", FULL)(patches).weights[0]
        for token in weights:
            assert len(set(kinds[token > 0].tolist())) == 1


def test_what_the_tower_merged_stays_together_and_rows_may_differ() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 196, 16, generator=draw)
    groups = torch.stack([torch.arange(196) // 2, torch.arange(196) // 7]) + 1
    vectors = torch.stack([each.index_select(0, g) for each, g in zip(vectors, groups, strict=True)])
    patches = PatchVectors(vectors, vectors[:, :, 0], (14, 14), groups=groups)
    tokens = compression.create("merge:20", FULL)(patches).weights.argmax(1)
    for row in range(2):
        for group in set(groups[row].tolist()):
            assert len(set(tokens[row][groups[row] == group].tolist())) == 1
        assert len(set(tokens[row].tolist())) == 20
    alone = replace(patches, vectors=vectors[1:], salience=patches.salience[1:], groups=groups[1:])
    assert torch.equal(compression.create("merge:20", FULL)(alone).weights.argmax(1)[0], tokens[1])


def test_a_picture_with_too_few_tokens_is_refused() -> None:
    groups = torch.zeros(1, 196, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 tokens, fewer than 4"):
        build("4", FULL)(PatchVectors(torch.ones(1, 196, 3), torch.ones(1, 196), (14, 14), groups=groups))


def test_the_tower_merges_only_with_thresholds_that_fit_it() -> None:
    known = MergeThresholds(9, (0.9,) * 6, (30.0,) * 6)
    context = CompressionContext((6, 6), thresholds={9: known})
    assert build("9", context).reducer(PLAIN) == ThresholdMerging(known.thresholds, 9, known.tokens)
    assert build("16", context).reducer(PLAIN) is None
    assert build("9", context).reducer(ViTConfig(depth=12)) is None
    assert build("9", context).reducer(replace(PLAIN, class_token=False, pool="avg")) is None
    assert build("9:unmerge", context).unmerges and not build("9", context).unmerges


@torch.inference_mode()
def test_the_source_map_of_a_tower_becomes_an_assignment() -> None:
    tower, images = build_tower(PLAIN), random_images(PLAIN)
    method = PatchMerging(9, (6, 6), thresholds=MergeThresholds(9, (0.8,) * 6, (36.0,) * 6))
    tokens, reducer = tower.embed(images), method.reducer(PLAIN)
    assert reducer is not None
    for index, block in enumerate(tower.blocks):
        tokens = block(tokens, reducer, index)
    assert len(set(tokens.present.tolist())) > 1 and tokens.present.min() >= 10
    features = tokens.grid()
    assignment = method(PatchVectors(features, features[:, :, 0], (6, 6), groups=tokens.source))
    # A mean over patches is the mean over tokens by their counts.
    means = assignment.apply(features)
    for row in range(3):
        for token, mean in zip(assignment.weights[row], means[row], strict=True):
            parts = sorted(set(tokens.source[row][token > 0].tolist()))
            counts = tokens.counts[row, parts].unsqueeze(1)
            torch.testing.assert_close((tokens.x[row, parts] * counts).sum(0) / counts.sum(), mean)
            assert int(counts.sum()) == int((token > 0).sum())


def test_a_picture_with_fewer_tokens_merges_among_its_own() -> None:
    """Near the corners of a simplex many similarities are negative: lower than to an absent token, a zero."""
    draw = torch.Generator().manual_seed(0)
    owners = torch.stack([torch.arange(16), torch.arange(0, 16, 2).repeat_interleave(2)])
    for _ in range(10):
        corners = torch.eye(8) - 1 / 8 + 0.03 * torch.randn(8, 8, generator=draw)
        vectors = torch.stack([torch.randn(16, 8, generator=draw), corners.repeat_interleave(2, 0)])
        together, alone = merge_rounds(vectors, owners, 3), merge_rounds(vectors[1:], owners[1:], 3)
        assert torch.equal(together[1], alone[0])
