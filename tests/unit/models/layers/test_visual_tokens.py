"""Assignments of patches to visual tokens."""

import pytest
import torch

from foveate.core.errors import BadPlan
from foveate.models.layers.cells import grid_positions
from foveate.models.layers.visual_tokens import (
    CompressionContext,
    PatchVectors,
    clusters,
    selection,
    token_count,
    usual_counts,
)


def test_selected_patches_come_in_order_with_their_own_positions() -> None:
    positions = grid_positions(2, 3)
    for kept in (torch.tensor([4, 0]), torch.tensor([[4, 0], [2, 1]])):
        assignment = selection(kept, positions)
        assert assignment.kept is not None
        assert torch.equal(assignment.kept, kept.sort(-1).values)
        assert torch.equal(assignment.positions, positions[assignment.kept])
        features = torch.randn(2, 6, 5)
        torch.testing.assert_close(assignment.apply(features), torch.matmul(assignment.weights, features))


def test_clusters_are_means_in_the_order_of_their_owners() -> None:
    owners = torch.tensor([[5, 1, 1, -1, 5, 5], [-1, -1, 2, 3, 3, 3]])
    positions = grid_positions(2, 3)
    assignment = clusters(owners, 2, positions)
    third = 1 / 3
    expected = [
        [[0, 0.5, 0.5, 0, 0, 0], [third, 0, 0, 0, third, third]],
        [[0, 0, 1, 0, 0, 0], [0, 0, 0, third, third, third]],
    ]
    torch.testing.assert_close(assignment.weights, torch.tensor(expected))
    torch.testing.assert_close(assignment.positions[0, 0], positions[1:3].mean(0))
    assert assignment.counts.tolist() == [[2, 3], [1, 3]]
    assert assignment.kept is None


def test_features_keep_their_type() -> None:
    assignment = clusters(torch.tensor([[0, 0, 2, 2]]), 2, grid_positions(2, 2))
    features = torch.randn(1, 4, 3)
    assert assignment.apply(features.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(assignment.apply(features)[0, 1], features[0, 2:].mean(0))


def test_patches_of_another_grid_are_refused() -> None:
    patches = PatchVectors(torch.zeros(1, 6, 2), torch.zeros(1, 6), (2, 3))
    assert patches.positions((2, 3)).shape == (6, 2)
    with pytest.raises(ValueError, match=r"built for \(3, 2\) patches"):
        patches.positions((3, 2))


@pytest.mark.parametrize("argument", [None, "", "0", "7", "-1", "1.5", "1e1", "x"])
def test_a_count_is_from_one_to_the_number_of_patches(argument: str | None) -> None:
    context = CompressionContext((2, 3))
    assert token_count("pool", "6", context) == 6
    with pytest.raises(BadPlan, match="from 1 to 6, as in pool:6; got"):
        token_count("pool", argument, context)


def test_usual_counts_are_below_full() -> None:
    assert usual_counts(CompressionContext((14, 14))) == ["4", "9", "16", "25", "49", "100"]
    assert usual_counts(CompressionContext((4, 4))) == ["4", "9"]
