"""GTP: the least useful tokens leave, and hand what they know to their neighbours in the picture.

"GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation" (WACV 2024): token selection
by regeneration difficulty and broadcasting ability, propagation over the token graph, and proportional
attention on the scales that go with it. Where the authors' code has options: the graph is the spatial one,
their default, for what the paper's mixed graph adds, the likeness of the embedded patches, no later block
still sees. Attention is not thinned out to its largest values, which would cost a CPU more than it saves; it
is proportional, which their code is with `--token_scale`. Models that pool patches weigh each by its scale;
that code takes the plain mean.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("0", "2", "5")
"""Arguments the contract tests use; the first is the identity."""

ALPHA = 0.1
"""How much of a neighbour's features a token takes over: the authors' default."""


@dataclass(frozen=True, slots=True)
class Gtp(Reducer):
    """After the attention of every block, `leaving` patch tokens propagate and go; one always stays."""

    leaving: int
    proportional = True

    def needs(self, block: int) -> Needs | None:
        return Needs.FULL if self.leaving else None

    def left(self, tokens: int, prefix: int) -> int:
        return tokens - self._going(tokens - prefix)

    def _going(self, patches: int) -> int:
        return min(self.leaving, patches - 1)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        if attention.full is None:
            raise ValueError("gtp needs the full attention")
        prefix, staying = tokens.prefix, len(tokens) - self._going(len(tokens) - tokens.prefix)
        order = usefulness(attention.full, prefix).argsort(dim=1, descending=True, stable=True) + prefix
        always = torch.arange(prefix, device=order.device).expand(len(order), -1)
        order = torch.cat([always, order], dim=1)
        kept, gone = order[:, :staying], order[:, staying:]
        share, nearest = _edges(tokens, kept, gone)
        scales = tokens.counts.gather(1, gone).unsqueeze(-1)
        counts = tokens.counts.gather(1, kept) + torch.matmul(share, scales).squeeze(-1)
        return Assignment(kept, gone, share, nearest, counts=counts)


def usefulness(attention: Tensor, prefix: int) -> Tensor:
    """How much the patch tokens are worth keeping: attention (B, H, N, N) to (B, N - prefix).

    Regeneration difficulty (what a token attends to itself) times broadcasting ability (the attention
    that it receives), each the largest over heads.
    """
    difficulty = attention.diagonal(dim1=-2, dim2=-1).float().amax(1)
    broadcast = attention.sum(-2, dtype=torch.float32).amax(1)
    return (difficulty * broadcast)[:, prefix:]


def _edges(tokens: Tokens, kept: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """ALPHA times the graph's weights (B, K, M) from leaving tokens to kept ones, and (B, M) int64: the
    kept token that stands nearest, which takes a leaving token's place in the picture.

    A token's node is the patch that it entered as. The graph joins each patch of the full picture to the
    up to eight around it and is normalised symmetrically, 1 / sqrt(degree * degree). Nearest is a
    neighbour wherever one is left; where none is, the token's features are lost.
    """
    side, prefix = math.isqrt(tokens.source.shape[1]), tokens.prefix
    row, column = _places(tokens, kept[:, prefix:].unsqueeze(2), side)
    their_row, their_column = _places(tokens, gone.unsqueeze(1), side)
    down, across = (row - their_row).abs(), (column - their_column).abs()
    degrees = _degree(row, column, side) * _degree(their_row, their_column, side)
    weights = ALPHA * degrees.rsqrt() * (torch.maximum(down, across) == 1)
    return F.pad(weights, (0, 0, prefix, 0)), (down**2 + across**2).argmin(1) + prefix


def _places(tokens: Tokens, positions: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the patches that the tokens at these positions entered as."""
    patches = tokens.origin.gather(1, positions.flatten(1)).view_as(positions) - tokens.prefix
    return patches // side, patches % side


def _degree(row: Tensor, column: Tensor, side: int) -> Tensor:
    """How many patches touch this one on a grid of side x side."""
    tall, wide = (1 + (place > 0).float() + (place < side - 1).float() for place in (row, column))
    return tall * wide - 1


def build(argument: str | None, context: ReducerContext) -> Gtp:
    """`gtp:8`: eight tokens leave at every block. Raises BadPlan for what is no whole number."""
    if not argument or not re.fullmatch(r"[0-9]{1,4}", argument):
        raise BadPlan(f"gtp takes the tokens that leave at each block, as in gtp:8; got {argument or ''!r}")
    return Gtp(int(argument))
