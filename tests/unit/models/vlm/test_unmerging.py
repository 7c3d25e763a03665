"""Virtual unmerging against attention with a copy for each patch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.cells import grid_positions
from foveate.models.layers.visual_tokens import VisualAssignment, clusters, selection
from foveate.models.vlm.unmerging import (
    expanded_attention,
    mean_copies_seen,
    unmerged_attention,
    unmerging_mask,
)

GRID, TOKENS, HEADS, HEAD = (4, 6), 7, 2, 8


def merged(batch: int = 3, seed: int = 0) -> VisualAssignment:
    """Random clusters of 24 patches, TOKENS of each picture."""
    draw = torch.Generator().manual_seed(seed)
    owners = []
    for _ in range(batch):
        firsts = torch.randperm(24, generator=draw)[:TOKENS]
        owner = firsts[torch.randint(TOKENS, (24,), generator=draw)]
        owner[firsts] = firsts
        owners.append(owner)
    return clusters(torch.stack(owners), TOKENS, grid_positions(*GRID))


def states(batch: int, length: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, HEADS, length, HEAD, generator=draw)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, assignment: VisualAssignment) -> Tensor:
    """Section 3.2 for one picture and head at a time: unmerge, attend under a causal mask, merge."""
    out = torch.zeros_like(q)
    for row, weights in enumerate(assignment.weights):
        owner = weights.argmax(0)
        for head in range(q.shape[1]):
            copies = []
            for patch in range(len(owner)):
                seen = owner[: patch + 1]
                scores = k[row, head, seen] @ q[row, head, owner[patch]] / HEAD**0.5
                copies.append(scores.softmax(0) @ v[row, head, seen])
            out[row, head] = weights @ torch.stack(copies)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_merged_tokens_is_that_of_their_copies(dtype: torch.dtype) -> None:
    assignment = merged()
    q, k, v = (each.to(dtype) for each in states(3, TOKENS))
    expected = by_hand(q.float(), k.float(), v.float(), assignment)
    for attend in (unmerged_attention, expanded_attention):
        gap = (attend(q, k, v, assignment).float() - expected).abs().max()
        assert gap < (1e-5 if dtype == torch.float32 else 0.05)


def causal(length: int, batch: int = 3) -> Tensor:
    return torch.ones(batch, 1, length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("lead", [0, 2])
def test_text_behind_the_picture_attends_as_to_copies(lead: int) -> None:
    assignment, text = merged(), 5
    length = lead + TOKENS + text
    q, k, v = states(3, length)
    mask = unmerging_mask(causal(length), assignment, lead)
    assert mask.shape == (3, 1, length, length) and mask.dtype == torch.float32
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for row, weights in enumerate(assignment.weights):
        columns = torch.cat(
            [torch.arange(lead), lead + weights.argmax(0), torch.arange(lead + TOKENS, length)]
        )
        full = F.scaled_dot_product_attention(
            q[row, :, lead + TOKENS :],
            k[row, :, columns],
            v[row, :, columns],
            attn_mask=torch.ones(text, lead + 24 + text, dtype=torch.bool).tril(lead + 24),
        )
        torch.testing.assert_close(out[row, :, lead + TOKENS :], full)
    before = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out[:, :, :lead], before[:, :, :lead])


def test_visual_tokens_attend_nearly_as_their_copies() -> None:
    assignment = merged()
    q, k, v = states(3, TOKENS)
    exact = unmerged_attention(q, k, v, assignment)
    mask = unmerging_mask(causal(TOKENS), assignment, 0)
    near = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (near - exact).pow(2).mean() < 0.1 * (plain - exact).pow(2).mean()
    torch.testing.assert_close(mask.squeeze(1).exp(), mean_copies_seen(assignment))


def test_tokens_of_one_patch_attend_as_usual() -> None:
    for assignment in (
        selection(torch.arange(24), grid_positions(*GRID)),
        clusters(torch.arange(24).expand(3, -1), 24, grid_positions(*GRID)),
    ):
        mask = unmerging_mask(causal(30), assignment, 3)
        assert torch.equal(mask.isfinite(), causal(30))
        assert mask[causal(30)].abs().max() == 0


def test_rows_behind_a_cache_get_the_counts_alone() -> None:
    assignment, length = merged(), TOKENS + 9
    whole = unmerging_mask(causal(length), assignment, 2)
    for first in (length - 1, TOKENS + 2, TOKENS, 2, 1):
        rows = unmerging_mask(causal(length)[:, :, first:], assignment, 2)
        assert torch.equal(rows, whole[:, :, first:])


def test_several_pictures_are_unmerged_one_after_the_other() -> None:
    first, second = merged(), merged(seed=4)
    length = 2 * TOKENS + 6
    mask = unmerging_mask(unmerging_mask(causal(length), first, 1), second, TOKENS + 2)
    assert torch.equal(mask[:, 0, TOKENS + 3, 1 : TOKENS + 1], first.counts.log())
    assert torch.equal(mask[:, 0, -1, 1 : TOKENS + 1], first.counts.log())
    assert torch.equal(mask[:, 0, -1, TOKENS + 2 : 2 * TOKENS + 2], second.counts.log())
