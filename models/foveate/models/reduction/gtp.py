"""GTP: drop the least useful tokens, after they propagate their features to neighbours in the image.

"GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation" (WACV 2024): token selection
by regeneration difficulty and broadcasting ability, propagation over the token graph, and proportional
attention with the resulting scales. Choices among the options of the authors' code:

- The graph is the spatial one, their default. The paper's mixed graph adds the similarity of the embedded
  patches, which no later block has.
- Attention is not reduced to its largest values. On a CPU that costs more than it saves.
- Attention is proportional, as with their `--token_scale`.
- Models that pool patches weight each patch by its scale. Their code takes the plain mean.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.matching import tokens_per_block
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("0", "2", "5")
"""Arguments the contract tests use; the first is the identity."""

ALPHA = 0.1
"""Share of a neighbour's features that a token takes over: the authors' default."""


@dataclass(frozen=True, slots=True)
class Gtp(Reducer):
    """After the attention of every block, `leaving` patch tokens propagate their features and leave.

    At least one patch token stays.
    """

    leaving: int
    """Patch tokens that leave at every block."""
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The full attention, at every block."""
        return Needs.FULL if self.leaving else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one block, prefix included."""
        return tokens - self._leaving(tokens - prefix)

    def _leaving(self, patches: int) -> int:
        """Patch tokens that leave, of `patches` patch tokens."""
        return min(self.leaving, patches - 1)

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Propagation of the features, and of the scales, of the tokens that leave."""
        leaving = self._leaving(tokens - config.prefix)
        return leaving * (tokens - leaving) * (config.width + 1)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Drop the least useful patch tokens, and give shares of their features to their neighbours."""
        if attention.full is None:
            raise ValueError("gtp needs the full attention")
        prefix, staying = tokens.prefix, self.remaining(len(tokens), tokens.prefix)
        order = usefulness(attention.full, prefix).argsort(dim=1, descending=True, stable=True) + prefix
        prefix_positions = torch.arange(prefix, device=order.device).expand(len(order), -1)
        order = torch.cat([prefix_positions, order], dim=1)
        kept, leaving = order[:, :staying], order[:, staying:]
        share, nearest = _edges(tokens, kept, leaving)
        scales = tokens.counts.gather(1, leaving).unsqueeze(-1)
        counts = tokens.counts.gather(1, kept) + torch.matmul(share, scales).squeeze(-1)
        return Assignment(kept, leaving, share, nearest, counts=counts)


def usefulness(attention: Tensor, prefix: int) -> Tensor:
    """How useful each patch token is: attention (B, H, N, N) to (B, N - prefix) float32.

    Regeneration difficulty (a token's attention to itself) times broadcasting ability (the attention that it
    receives). Each is the maximum over heads.
    """
    difficulty = attention.diagonal(dim1=-2, dim2=-1).float().amax(1)
    broadcast = attention.sum(-2, dtype=torch.float32).amax(1)
    return (difficulty * broadcast)[:, prefix:]


def _edges(tokens: Tokens, kept: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of the token graph from the M leaving tokens to the K kept ones.

    Returns the weights times ALPHA (B, K, M), and the nearest kept token of each leaving one (B, M) int64,
    which represents its patch from now on.

    A token's node is the patch as which it entered. The graph joins each patch of the full image to its up to
    eight neighbours, with symmetric normalisation, 1 / sqrt(degree * degree). The nearest kept token is a
    neighbour if one remains. If none remains, the token's features are lost.
    """
    side, prefix = math.isqrt(tokens.source.shape[1]), tokens.prefix
    row, column = _coordinates(tokens, kept[:, prefix:].unsqueeze(2), side)
    leaving_row, leaving_column = _coordinates(tokens, leaving.unsqueeze(1), side)
    down, across = (row - leaving_row).abs(), (column - leaving_column).abs()
    degrees = _degree(row, column, side) * _degree(leaving_row, leaving_column, side)
    weights = ALPHA * degrees.rsqrt() * (torch.maximum(down, across) == 1)
    return F.pad(weights, (0, 0, prefix, 0)), (down**2 + across**2).argmin(1) + prefix


def _coordinates(tokens: Tokens, positions: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the patches as which the tokens at these positions entered."""
    patches = tokens.origin.gather(1, positions.flatten(1)).view_as(positions) - tokens.prefix
    return patches // side, patches % side


def _degree(row: Tensor, column: Tensor, side: int) -> Tensor:
    """Number of neighbours of the patches at these rows and columns of a side x side grid."""
    tall, wide = (1 + (index > 0).float() + (index < side - 1).float() for index in (row, column))
    return tall * wide - 1


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return tokens_per_block(context.config, image_size)


def build(argument: str | None, context: ReducerContext) -> Gtp:
    """`gtp:8`: eight tokens leave at every block. Raises BadPlan for anything but a whole number."""
    if not argument or not re.fullmatch(r"[0-9]{1,4}", argument):
        raise BadPlan(f"gtp takes the tokens that leave at each block, as in gtp:8; got {argument or ''!r}")
    return Gtp(int(argument))
