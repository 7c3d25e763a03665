"""Compression that the question guides."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from foveate.models import compression
from foveate.models.compression.guided import GuidedCompression, build, density_clusters, question_similarity
from foveate.models.layers.visual_tokens import (
    CompressionContext,
    PatchVectors,
    QuestionTokens,
    VisualAssignment,
)
from tests.support.pictures import SIDE, asking, clustered

FULL = CompressionContext((SIDE, SIDE))


def alone(assignment: VisualAssignment, patch: int) -> bool:
    """Whether a patch of the first picture is a token of its own."""
    weights = assignment.weights[0]
    return bool(((weights[:, patch] > 0) & ((weights > 0).sum(1) == 1)).any())


def a_picture(seed: int = 0, width: int = 48) -> tuple[PatchVectors, torch.Generator]:
    draw = torch.Generator().manual_seed(seed)
    vectors, salience = torch.randn(1, 196, width, generator=draw), torch.rand(1, 196, generator=draw)
    return PatchVectors(vectors, salience, (SIDE, SIDE)), draw


@pytest.mark.parametrize("count", [1, 4, 16, 49])
def test_it_keeps_the_patch_that_matches_the_question(count: int) -> None:
    for seed in range(10):
        patches, draw = a_picture(seed)
        patches.salience[0, 77] = 0  # the least salient one
        word = patches.vectors[0, 77] + 0.5 * torch.randn(48, generator=draw)
        others = [torch.randn(48, generator=draw) for _ in range(3)]
        asked = replace(patches, question=asking(*others, word))
        assert alone(compression.create(f"guided:{count}", FULL)(asked), 77)


def test_it_keeps_the_most_salient_patches_whatever_the_question() -> None:
    patches, draw = a_picture()
    salient = patches.salience[0].topk(2).indices.tolist()
    for _ in range(3):
        asked = replace(patches, question=asking(torch.randn(48, generator=draw)))
        assignment = compression.create("guided:16", FULL)(asked)
        assert all(alone(assignment, patch) for patch in salient)


def test_the_question_recovers_a_rare_kind_of_patches() -> None:
    for seed in range(10):
        patches, kinds = clustered(8, seed)
        rare = (kinds == 7).nonzero().flatten().tolist()
        word = patches.vectors[0, rare].mean(0)
        assignment = compression.create("guided:16", FULL)(replace(patches, question=asking(word)))
        assert sum(alone(assignment, patch) for patch in rare) >= min(len(rare), 6)


def test_a_word_that_all_patches_are_close_to_does_not_decide() -> None:
    patches, draw = a_picture()
    common = torch.randn(48, generator=draw)
    patches = replace(patches, vectors=patches.vectors + 3 * common)
    word = patches.vectors[0, 50] - 3 * common
    scores = question_similarity(patches.vectors, asking(common, word), patches.salience)
    assert int(scores.argmax()) == 50


def test_similarity_is_filips_up_to_the_mean_of_each_word() -> None:
    draw = torch.Generator().manual_seed(1)
    vectors, words = torch.randn(2, 7, 5, generator=draw), torch.randn(2, 4, 5, generator=draw)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    scores = question_similarity(vectors, QuestionTokens(words, mask), torch.zeros(2, 7))
    for row in range(2):
        cosines = torch.stack(
            [F.cosine_similarity(vectors[row], word, dim=1) for word in words[row][mask[row]]]
        )
        expected = (cosines - cosines.mean(1, keepdim=True)).amax(0)
        torch.testing.assert_close(scores[row], expected)


@pytest.mark.parametrize("length", [0, 3])
def test_a_picture_without_a_question_keeps_more_salient_patches(length: int) -> None:
    patches, _ = a_picture()
    silent = QuestionTokens(torch.zeros(1, length, 48), torch.zeros(1, length, dtype=torch.bool))
    assignment = compression.create("guided:16", FULL)(replace(patches, question=silent))
    assert all(alone(assignment, patch) for patch in patches.salience[0].topk(8).indices.tolist())


@pytest.mark.parametrize(
    ("count", "parts"), [(1, (0, 1, 0)), (3, (0, 2, 1)), (4, (0, 2, 2)), (16, (2, 6, 8)), (49, (6, 19, 24))]
)
def test_the_tokens_are_divided_by_constant_shares(count: int, parts: tuple[int, int, int]) -> None:
    method = build(str(count), FULL)
    assert isinstance(method, GuidedCompression)
    assert (method.salient, method.recovered, method.merged) == parts


def test_clusters_are_the_kinds_of_vectors() -> None:
    for seed in range(5):
        patches, kinds = clustered(4, seed)
        centres = density_clusters(patches.vectors, 4)[0]
        assert len(set(centres.tolist())) == 4
        assert torch.equal(kinds[centres], kinds)


def test_as_many_clusters_as_vectors_are_the_vectors() -> None:
    for vectors in (torch.randn(2, 9, 4), torch.zeros(2, 9, 4), torch.ones(2, 1, 4)):
        length = vectors.shape[1]
        assert torch.equal(density_clusters(vectors, length), torch.arange(length).expand(2, -1))
