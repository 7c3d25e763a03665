"""A wrapper that checks what the contract says about a reducer's assignments."""

from dataclasses import fields

import torch
from torch import Tensor

from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens


def state(tokens: Tokens, attention: Attention) -> list[Tensor]:
    """All tensors that a reducer gets."""
    information = [getattr(attention, field.name) for field in fields(Attention)]
    needed = [tensor for tensor in information if tensor is not None]
    return [tokens.x, tokens.counts, tokens.source, *needed]


class CheckedReducer(Reducer):
    """Calls a reducer twice and checks everything that the contract says about its assignment."""

    def __init__(self, reducer: Reducer) -> None:
        self.reducer = reducer
        self.point, self.proportional = reducer.point, reducer.proportional
        self.adaptive = reducer.adaptive
        self.calls: list[int] = []
        self.plain_sums = True

    def needs(self, block: int) -> Needs | None:
        return self.reducer.needs(block)

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return self.reducer.after(tokens, prefix, depth)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        before = [tensor.clone() for tensor in state(tokens, attention)]
        first, second = (self.reducer(tokens, attention, block) for _ in range(2))
        for was, now in zip(before, state(tokens, attention), strict=True):
            assert torch.equal(was, now), "a reducer must not write to its inputs"
        for field in fields(Assignment):
            one, two = getattr(first, field.name), getattr(second, field.name)
            same = torch.equal(one, two) if isinstance(one, Tensor) else one == two
            assert same, "a reducer must decide the same in both calls"
        assert_valid(first, tokens)
        assert self.adaptive or has_no_padding(first, tokens)
        self.calls.append(block)
        self.plain_sums &= first.counts is None
        return first


def has_no_padding(assignment: Assignment, tokens: Tokens) -> bool:
    """A reducer that keeps equally many tokens of every image makes no padding."""
    return bool((tokens.apply(assignment).counts > 0).all())


def assert_valid(assignment: Assignment, tokens: Tokens) -> None:
    """Indices are in range and refer to no token twice. Prefix tokens come first and in order."""
    batch, length = tokens.counts.shape
    absorbed = assignment.kept[:, :0] if assignment.absorbed is None else assignment.absorbed
    assert assignment.kept.shape[0] == absorbed.shape[0] == batch
    positions = torch.cat([assignment.kept, absorbed], dim=1)
    assert positions.dtype == torch.int64
    assert positions.min() >= 0
    assert positions.max() < length
    prefix = torch.arange(tokens.prefix).expand(batch, -1)
    assert torch.equal(assignment.kept[:, : tokens.prefix], prefix)
    counts = tokens.apply(assignment).counts
    assert counts.isfinite().all()
    assert torch.all(counts >= 0)
    padding = counts[:, : assignment.kept.shape[1]] == 0
    assert torch.all(assignment.kept[padding] < tokens.prefix)
    # Every token appears at most once. Only padding may repeat a prefix token.
    filling = absorbed < tokens.prefix
    for row, pad in zip(positions, torch.cat([padding, filling], dim=1), strict=True):
        assert len(set(row[~pad].tolist())) == int((~pad).sum())
    if assignment.into is not None:
        assert assignment.into.shape == absorbed.shape
        assert torch.all(assignment.into[filling] == absorbed[filling])
        assert torch.all((assignment.into >= tokens.prefix)[~filling])
        assert torch.all(assignment.into < assignment.kept.shape[1])
    assert not filling.any() or (assignment.into is not None and assignment.counts is not None)
    if assignment.share is not None:
        new = 1 if assignment.parts is None else assignment.parts.shape[2]
        receivers = new if assignment.into is None else assignment.kept.shape[1]
        assert assignment.share.shape == (batch, receivers, absorbed.shape[1])
        assert assignment.share.isfinite().all()
    if assignment.parts is not None:
        assert assignment.parts.shape[:2] == absorbed.shape
        assert torch.allclose(assignment.parts.sum(2), torch.ones(absorbed.shape))
    if assignment.own is not None:
        assert assignment.own.shape == assignment.kept.shape
        assert torch.all(assignment.own[:, : tokens.prefix] == 1), "prefix tokens must not change"


def assert_consistent(tokens: Tokens, patches: int, plain_sums: bool) -> None:
    """Every patch points at a token or at none, and every token counts the patches that point at it."""
    assert tokens.x.shape[:2] == tokens.counts.shape
    assert tokens.source.shape == (len(tokens.x), patches)
    assert tokens.x.isfinite().all()
    assert torch.all(tokens.counts[:, : tokens.prefix] == 1)
    for counts, source in zip(tokens.counts, tokens.source, strict=True):
        present = source[source >= 0]
        assert torch.all(counts[present] > 0)
        assert torch.all((present >= tokens.prefix) & (present < len(tokens)))
        assert torch.all(source >= -1)
        pointed_at = torch.bincount(present, minlength=len(tokens))
        if plain_sums:
            assert torch.equal(pointed_at[tokens.prefix :].float(), counts[tokens.prefix :])
