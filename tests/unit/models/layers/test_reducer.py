"""The defaults of the reducer protocol."""

from dataclasses import dataclass

import torch

from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer, UntrainedContext
from foveate.models.layers.tokens import Assignment, Tokens


@dataclass(frozen=True)
class Watching(Reducer):
    """Sees the attention of each block and keeps every token."""

    def needs(self, block: int) -> Needs | None:
        return Needs.FULL

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        everything = torch.arange(len(tokens)).expand(len(tokens.x), -1)
        return Assignment(everything)


@dataclass(frozen=True)
class Halving(Watching):
    """Keeps half of the patch tokens at some blocks."""

    blocks: tuple[int, ...]

    def needs(self, block: int) -> Needs | None:
        return Needs.CLASS_ROW if block in self.blocks else None

    def remaining(self, tokens: int, prefix: int) -> int:
        return prefix + (tokens - prefix) // 2


def test_token_counts_follow_the_blocks_that_reduce() -> None:
    assert Halving((1, 2)).after(17, 1, 4) == (17, 9, 5, 5)
    assert Halving(()).after(17, 1, 3) == (17, 17, 17)


def test_without_remaining_all_tokens_stay() -> None:
    assert Watching().after(17, 1, 3) == (17, 17, 17)


def test_by_default_a_reducer_acts_in_the_middle_of_a_block_on_plain_attention() -> None:
    reducer = Watching()
    assert (reducer.point, reducer.proportional, reducer.adaptive) == (ReductionPoint.MIDDLE, False, False)


def test_an_untrained_context_has_a_shape_and_nothing_trained() -> None:
    context = UntrainedContext(ViTConfig())
    assert (len(context.gates), context.schedules, context.dense) == (0, {}, None)
