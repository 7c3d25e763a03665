"""ToMe: merge the most similar tokens at every block.

"Token Merging: Your ViT But Faster" (ICLR 2023), section 3, equation 1 and appendix D. The schedules, and the
rule that models fine-tuned from MAE have no proportional attention, are those of the authors' code
(github.com/facebookresearch/ToMe: `parse_r`, and `prop_attn` of its patch for MAE).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.matching import (
    best_edges,
    merge,
    pair_count,
    positions,
    split_by_parity,
    tokens_per_block,
)
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("0", "3", "8", "3:-1")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class ToMe(Reducer):
    """After the attention of a block, some tokens merge into the tokens most similar to them."""

    merged: tuple[int, ...]
    """For each block, the tokens that merge."""
    proportional: bool = True

    def needs(self, block: int) -> Needs | None:
        """The keys, at blocks that merge."""
        return Needs.KEYS if self.merged[block] else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens after each block, prefix included."""
        counts = []
        for block in range(depth):
            tokens -= self._merging(tokens, prefix, block)
            counts.append(tokens)
        return tuple(counts)

    def _merging(self, tokens: int, prefix: int, block: int) -> int:
        """Tokens that merge. One half is matched with the other, so at most half of the patches can merge."""
        return min(self.merged[block], (tokens - prefix) // 2)

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Matching by the mean keys of the heads, and mixing of the merged tokens' features."""
        merging = self._merging(tokens, config.prefix, block)
        matching = pair_count(tokens - config.prefix) * config.width // config.heads
        return matching + merging * (tokens - merging) * config.width if merging else 0.0

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Merge along the strongest edges between tokens at even and at odd positions."""
        if attention.keys is None:
            raise ValueError("tome needs the keys")
        prefix, index = tokens.prefix, positions(tokens.counts)
        count = self._merging(len(tokens), prefix, block)
        if not count:
            return Assignment(index)
        even, odd = split_by_parity(F.normalize(attention.keys.mean(1, dtype=torch.float32), dim=2), prefix)
        order, partner = best_edges(torch.matmul(even, odd.transpose(1, 2)))
        unmerged = order[:, count:].sort(dim=1).values
        from_even, from_odd = split_by_parity(index, prefix)
        # The order of the tokens decides the pairs of the next block, so it is the paper's order.
        kept = torch.cat([index[:, :prefix], from_even.gather(1, unmerged), from_odd], dim=1)
        into = prefix + unmerged.shape[1] + partner[:, :count]
        return merge(kept, from_even.gather(1, order[:, :count]), into, tokens.counts)


def schedule(merged: int, inflection: float, depth: int) -> tuple[int, ...]:
    """Tokens that merge at each block, on average `merged`; never below 0.

    inflection: the trend from the first block to the last, -1 to 1. With 0 the number is constant. With -1 it
    falls from twice `merged` to 0, the decreasing schedule of section 4.1; with 1 it rises.
    """
    first = int(merged * (1 - inflection))
    step = (2 * merged - 2 * first) / max(depth - 1, 1)
    return tuple(int(first + step * block) for block in range(depth))


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels: level, and most in early blocks."""
    level = tokens_per_block(context.config, image_size)
    return (*level, *(f"{count}:-1" for count in level[:3]))


def build(argument: str | None, context: ReducerContext) -> ToMe:
    """`tome:8` merges 8 tokens at every block; `tome:8:-1` as many in total, most of them in early blocks.

    The second number, from -1 to 1, is the trend over the blocks: see `schedule`. Attention is proportional
    to the size of tokens (equation 1), except in a model that pools patches beside a class token, as models
    fine-tuned from MAE do. Raises BadPlan for another argument.
    """
    match = re.fullmatch(r"([0-9]{1,4})(?::(-?[0-9]*\.?[0-9]+))?", argument or "", re.ASCII)
    inflection = float(match[2] or 0) if match else math.nan
    if match is None or not -1 <= inflection <= 1:
        raise BadPlan(
            "tome takes how many tokens each block merges, and a trend if wanted, as in 8 or 8:-1; "
            f"got {argument or ''!r}"
        )
    config = context.config
    return ToMe(schedule(int(match[1]), inflection, config.depth), not config.ignores_class_token)
