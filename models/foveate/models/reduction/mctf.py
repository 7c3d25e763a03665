"""MCTF: fuse tokens that are alike, uninformative and small, before the block whose attention says so.

"Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers"
(CVPR 2024), sections 3.2 and 3.3. What the paper leaves open is as in the authors' code: which blocks
fuse, how many tokens always stay, the temperatures, and the order of what is left.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint
from foveate.models.layers.matching import by_strength, halves, pooled, positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

EXAMPLES: tuple[str | None, ...] = ("0", "3", "8")
"""Arguments the contract tests use; the first is the identity."""

INFORMATION, SIZE = 1 / 20, 1 / 40
"""Exponents of two criteria, one over their temperatures; that of similarity is 1."""
FEWEST = 10
"""Tokens, prefix included, that always stay."""


@dataclass(frozen=True, slots=True)
class Mctf(Reducer):
    """Before every block but the first, `fused` tokens become part of others."""

    fused: int
    point = ReductionPoint.AHEAD
    proportional = True

    def needs(self, block: int) -> Needs | None:
        return Needs.FULL if self.fused and block > 0 else None

    def left(self, tokens: int, prefix: int) -> int:
        return tokens - self._fused(tokens, prefix)

    def _fused(self, tokens: int, prefix: int) -> int:
        return max(0, min(self.fused, tokens - FEWEST, (tokens - prefix) // 2))

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        if attention.full is None:
            raise ValueError("mctf needs the full attention")
        prefix, here = tokens.prefix, positions(tokens.counts)
        count = self._fused(len(tokens), prefix)
        if not count:
            return Assignment(here)
        received = attention.full.mean(2).mean(1, dtype=torch.float32)
        # What nobody attends to would weigh nothing and attract without bound.
        received = received.clamp(min=torch.finfo(torch.float32).tiny)
        kept, absorbed, into = _match(_attraction(tokens, received), count, here, prefix)
        return pooled(kept, absorbed, into, received * tokens.counts)


def _attraction(tokens: Tokens, received: Tensor) -> Tensor:
    """How much the tokens at even positions attract those at odd ones: (B, A, O) float32.

    Section 3.2. The paper also divides two criteria by their maxima: constants of a picture, which
    change neither who is best nor any order. received: (B, N), the mean attention on each token.
    """
    alone = received**-INFORMATION * tokens.counts**-SIZE
    a, b = halves(F.normalize(tokens.x.float(), dim=2), tokens.prefix)
    alone_a, alone_b = halves(alone, tokens.prefix)
    similarity = (torch.matmul(a, b.transpose(1, 2)) + 1) / 2
    return similarity * alone_a.unsqueeze(2) * alone_b.unsqueeze(1)


def _match(scores: Tensor, count: int, here: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bidirectional bipartite soft matching: kept, absorbed and into, as in an Assignment.

    Half of `count` goes from A, the even positions, into B. Then the rest goes from B, with what it
    absorbed, into what is left of A. Left are the prefix, A in order, B by falling attraction.
    """
    forth, back = count // 2, count - count // 2
    from_a, from_b = halves(here, prefix)
    order_a, partner_a = by_strength(scores)
    rest = order_a[:, forth:].sort(dim=1).values
    left = gather_tokens(scores, rest)
    order_b, partner_b = by_strength(left.transpose(1, 2))
    kept = torch.cat([here[:, :prefix], from_a.gather(1, rest), from_b.gather(1, order_b[:, back:])], dim=1)
    absorbed = torch.cat([from_a.gather(1, order_a[:, :forth]), from_b.gather(1, order_b[:, :back])], dim=1)
    # Where each token of B ends up is where all that it had absorbed before ends up too.
    moved = prefix + partner_b[:, :back]
    stayed = here[:, prefix + rest.shape[1] : kept.shape[1]]
    slots = torch.empty_like(order_b).scatter(1, order_b, torch.cat([moved, stayed], dim=1))
    return kept, absorbed, torch.cat([slots.gather(1, partner_a[:, :forth]), moved], dim=1)


def build(argument: str | None, context: ReducerContext) -> Mctf:
    """`mctf:16` fuses 16 tokens before every block but the first. Raises BadPlan for no whole number."""
    if not re.fullmatch(r"[0-9]{1,4}", argument or ""):
        raise BadPlan(f"mctf takes how many tokens each block fuses, as in mctf:16; got {argument or ''!r}")
    return Mctf(int(argument or ""))
