"""Matching of tokens: pairs, the strongest edges, means, and the numbers of tokens that profiling tries."""

import torch

from foveate.models.layers.config import ViTConfig
from foveate.models.layers.matching import best_edges, merge, pair_count, split_by_parity, tokens_per_block


def test_patches_are_split_by_position_without_the_prefix() -> None:
    x = torch.arange(8).expand(1, -1)
    for prefix in (1, 2):
        even, odd = split_by_parity(x, prefix)
        assert sorted([*even[0].tolist(), *odd[0].tolist()]) == list(range(prefix, 8))
        assert even.shape[1] * odd.shape[1] == pair_count(8 - prefix)


def test_the_strongest_edges_come_first() -> None:
    order, column = best_edges(torch.tensor([[[0.1, 0.2], [0.9, 0.3], [0.2, 0.2]]]))
    assert order.tolist() == [[1, 0, 2]]
    assert column.tolist() == [[0, 1, 0]]


def test_a_merged_token_is_the_weighted_mean_of_its_parts() -> None:
    x, weight = torch.tensor([[[1.0], [2.0], [6.0]]]), torch.tensor([[1.0, 3.0, 1.0]])
    assignment = merge(torch.tensor([[0, 1]]), torch.tensor([[2]]), torch.tensor([[1]]), weight)
    assert assignment.mix(x).flatten().tolist() == [1.0, 3.0]


def test_tokens_per_block_remove_shares_of_the_patches() -> None:
    assert list(tokens_per_block(ViTConfig(), 224)) == ["4", "8", "12", "15"]
    assert set(tokens_per_block(ViTConfig(), 32)) == {"1"}, "at least one"
