"""Token state and assignments: features, counts, source map, origins and restoration."""

import pytest
import torch
from torch import Tensor

from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def start(batch: int = 1, patches: int = 4) -> Tokens:
    """A class token and patches, before any reduction."""
    x = torch.randn(batch, 1 + patches, 4, generator=torch.Generator().manual_seed(1))
    return Tokens.start(x, 1)


def index(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_at_the_start_every_token_represents_itself() -> None:
    tokens = start(2)
    assert len(tokens) == 5
    assert tokens.counts.tolist() == [[1.0] * 5] * 2
    assert tokens.source.tolist() == [[1, 2, 3, 4]] * 2
    assert tokens.origin.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert torch.equal(tokens.grid(), tokens.x[:, 1:])


def test_dropped_patches_stay_dropped_and_kept_ones_follow_their_token() -> None:
    tokens = start()
    once = tokens.apply(Assignment(index([0, 4, 2, 1])))
    assert once.source.tolist() == [[3, 2, -1, 1]]
    twice = once.apply(Assignment(index([0, 3, 1])))
    assert twice.source.tolist() == [[1, -1, -1, 2]]
    assert twice.origin.tolist() == [[0, 1, 4]]
    expected = torch.stack([tokens.x[0, 1], torch.zeros(4), torch.zeros(4), tokens.x[0, 4]])
    assert torch.equal(twice.grid()[0], expected)


def test_absorbed_tokens_add_their_share_and_their_count() -> None:
    tokens = start()
    merged = tokens.apply(
        Assignment(
            index([0, 1, 3]),
            absorbed=index([2, 4]),
            share=torch.tensor([[[0.0, 0.0], [0.5, 0.0], [0.0, 0.25]]]),
            into=index([1, 2]),
            own=torch.tensor([[1.0, 0.5, 0.75]]),
        )
    )
    x = tokens.x[0]
    assert torch.allclose(merged.x[0, 1], (x[1] + x[2]) / 2)
    assert torch.allclose(merged.x[0, 2], 0.75 * x[3] + 0.25 * x[4])
    assert merged.counts.tolist() == [[1, 2, 2]]
    assert merged.source.tolist() == [[1, 1, 2, 2]]
    assert merged.origin.tolist() == [[0, 1, 3]]


def test_tokens_absorbed_without_a_target_make_a_new_token() -> None:
    tokens = start()
    fused = tokens.apply(Assignment(index([0, 3]), index([1, 2, 4]), torch.full((1, 1, 3), 0.5)))
    assert torch.allclose(fused.x[0, 2], tokens.x[0, [1, 2, 4]].sum(0) / 2)
    assert fused.counts.tolist() == [[1, 1, 3]]
    assert fused.source.tolist() == [[2, 2, 1, 2]]
    assert fused.origin.tolist() == [[0, 3, -1]]


def test_padding_counts_for_nothing() -> None:
    padded = start().apply(Assignment(index([0, 2, 0]), counts=torch.tensor([[1.0, 1.0, 0.0]])))
    assert padded.present.tolist() == [2]


def test_spread_copies_rows_back_to_the_tokens_before() -> None:
    assignment = Assignment(index([0, 3]), index([1]), torch.ones(1, 2, 1), into=index([1]))
    rows = torch.tensor([[[5.0], [7.0]]])
    assert assignment.spread(rows, 4)[0, :, 0].tolist() == [5, 7, 0, 7]
    assert assignment.slots(4).tolist() == [[0, 1, -1, 1]]
    assert assignment.total(torch.ones(1, 4, 1))[0, :, 0].tolist() == [1, 2]


def test_rows_selects_samples_with_all_of_their_state() -> None:
    tokens = start(3).apply(Assignment(index([0, 1], [0, 2], [0, 3])))
    some = tokens.rows(torch.tensor([2, 0]))
    assert torch.equal(some.x, tokens.x[[2, 0]])
    assert some.source.tolist() == [[-1, -1, 1, -1], [1, -1, -1, -1]]
    assert some.origin.tolist() == [[0, 3], [0, 1]]


def test_mixed_tokens_can_be_reduced_again() -> None:
    tokens = start()
    parts = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]])
    mixing = Assignment(index([0]), index([1, 2, 3, 4]), torch.full((1, 2, 4), 0.25), parts=parts)
    mixed = tokens.apply(mixing)
    assert mixed.source.tolist() == [[1, 1, 2, 2]]
    assert torch.allclose(mixed.grid(), parts @ mixed.x[:, 1:])
    assert torch.equal(mixed.rows(torch.tensor([0])).grid(), mixed.grid())
    dropped = mixed.apply(Assignment(index([0, 2])))
    assert dropped.source.tolist() == [[-1, -1, 1, 1]]
    assert torch.allclose(dropped.grid(), parts[:, :, 1:] @ mixed.x[:, 2:])


def test_gather_tokens_selects_rows_of_each_sample() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(gather_tokens(x, index([2, 0], [1, 1])), torch.stack([x[0, [2, 0]], x[1, [1, 1]]]))
