"""MCTF: fuse tokens that are similar, uninformative and small, before the block whose attention decides it.

"Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers" (CVPR 2024),
sections 3.2 and 3.3. Details that the paper leaves open follow the authors' code: the blocks that fuse, the
number of tokens that always stay, the temperatures, and the order of the remaining tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.matching import (
    best_edges,
    merge,
    pair_count,
    positions,
    split_by_parity,
    tokens_per_block,
)
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

EXAMPLES: tuple[str | None, ...] = ("0", "3", "8")
"""Arguments the contract tests use; the first is the identity."""

INFORMATION, SIZE = 1 / 20, 1 / 40
"""Exponents of the criteria information and size: one over their temperatures. That of similarity is 1."""
MIN_TOKENS = 10
"""Tokens, prefix included, that always stay."""


@dataclass(frozen=True, slots=True)
class Mctf(Reducer):
    """Before every block but the first, `fused` tokens become part of others."""

    fused: int
    """Tokens that are fused into others at each block."""
    point = ReductionPoint.AHEAD
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The full attention, at every block but the first."""
        return Needs.FULL if self.fused and block > 0 else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one block, prefix included."""
        return tokens - self._fusing(tokens, prefix)

    def _fusing(self, tokens: int, prefix: int) -> int:
        """Tokens that are fused into others, of `tokens` tokens."""
        return max(0, min(self.fused, tokens - MIN_TOKENS, (tokens - prefix) // 2))

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Matching by features, and mixing of the fused tokens' features and updates."""
        fusing, pairs = self._fusing(tokens, config.prefix), pair_count(tokens - config.prefix)
        return (pairs + 2 * fusing * (tokens - fusing)) * config.width if fusing else 0.0

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Fuse the pairs of tokens with the strongest attraction."""
        if attention.full is None:
            raise ValueError("mctf needs the full attention")
        prefix, index = tokens.prefix, positions(tokens.counts)
        count = self._fusing(len(tokens), prefix)
        if not count:
            return Assignment(index)
        received = attention.full.mean(2).mean(1, dtype=torch.float32)
        # A token that receives no attention would have weight 0 and an infinite attraction.
        received = received.clamp(min=torch.finfo(torch.float32).tiny)
        kept, absorbed, into = _match(_attraction(tokens, received), count, index, prefix)
        return merge(kept, absorbed, into, received * tokens.counts)


def _attraction(tokens: Tokens, received: Tensor) -> Tensor:
    """Attraction between tokens at even and at odd positions: (B, E, O) float32 (section 3.2).

    The paper also divides two criteria by their maxima. These are constants of an image, which change neither
    the best partner nor any order. received: (B, N), the mean attention on each token.
    """
    single = received**-INFORMATION * tokens.counts**-SIZE
    even, odd = split_by_parity(F.normalize(tokens.x.float(), dim=2), tokens.prefix)
    single_even, single_odd = split_by_parity(single, tokens.prefix)
    similarity = (torch.matmul(even, odd.transpose(1, 2)) + 1) / 2
    return similarity * single_even.unsqueeze(2) * single_odd.unsqueeze(1)


def _match(scores: Tensor, count: int, index: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bidirectional bipartite soft matching. Returns kept, absorbed and into, as in an Assignment.

    First, half of `count` tokens at even positions go into tokens at odd positions. Then the other half goes
    from odd positions, together with the tokens they absorbed, into the remaining even ones. The new order
    is: the prefix, the even tokens in order, the odd tokens by falling attraction.
    """
    forward, backward = count // 2, count - count // 2
    from_even, from_odd = split_by_parity(index, prefix)
    order_even, partner_even = best_edges(scores)
    kept_even = order_even[:, forward:].sort(dim=1).values
    order_odd, partner_odd = best_edges(gather_tokens(scores, kept_even).transpose(1, 2))
    kept = torch.cat(
        [index[:, :prefix], from_even.gather(1, kept_even), from_odd.gather(1, order_odd[:, backward:])],
        dim=1,
    )
    absorbed = torch.cat(
        [from_even.gather(1, order_even[:, :forward]), from_odd.gather(1, order_odd[:, :backward])], dim=1
    )
    # An even token ends up in the same slot as the odd token that absorbed it.
    moved = prefix + partner_odd[:, :backward]
    stayed = index[:, prefix + kept_even.shape[1] : kept.shape[1]]
    slots = torch.empty_like(order_odd).scatter(1, order_odd, torch.cat([moved, stayed], dim=1))
    return kept, absorbed, torch.cat([slots.gather(1, partner_even[:, :forward]), moved], dim=1)


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return tokens_per_block(context.config, image_size)


def build(argument: str | None, context: ReducerContext) -> Mctf:
    """`mctf:16` fuses 16 tokens before every block but the first. Raises BadPlan for no whole number."""
    if not re.fullmatch(r"[0-9]{1,4}", argument or ""):
        raise BadPlan(f"mctf takes how many tokens each block fuses, as in mctf:16; got {argument or ''!r}")
    return Mctf(int(argument or ""))
