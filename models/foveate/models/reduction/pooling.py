"""Average pooling of the grid of patches: the baseline that every method which merges tokens must beat.

At the blocks of EViT, a coarser grid replaces the grid of patch tokens; content plays no part. No default
ladder uses it: it is measured so that comparisons of reducers have a reference.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.matching import merge, positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction.evit import stages

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.6", "0.3")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class Pooling(Reducer):
    """After the attention of the chosen blocks, the tokens in each cell of a coarser grid become one."""

    keep: float
    """Cells of the coarser grid per cell of the finer one, above 0 and at most 1; the side is rounded."""
    blocks: tuple[int, ...]
    """Blocks that pool, counted from 0."""
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """No attention, at the chosen blocks."""
        return Needs.NOTHING if self.keep < 1 and block in self.blocks else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one chosen block, prefix included."""
        return prefix + self._side(math.isqrt(tokens - prefix)) ** 2

    def _side(self, side: int) -> int:
        """Cells per row of the coarser grid, at least 1, for `side` cells of the finer one."""
        return max(1, round(math.sqrt(self.keep) * side))

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """The means."""
        after = self.remaining(tokens, config.prefix)
        return after * (tokens - after) * config.width

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Pool a square grid of tokens in image order. Raises BadPlan for another number of tokens."""
        prefix, side = tokens.prefix, math.isqrt(len(tokens) - tokens.prefix)
        if side * side != len(tokens) - prefix:
            raise BadPlan("pooling needs a square grid of patches")
        first, others, cell = (
            index.to(tokens.x.device).expand(len(tokens.x), -1) for index in _cells(side, self._side(side))
        )
        kept = torch.cat([positions(tokens.counts)[:, :prefix], prefix + first], dim=1)
        return merge(kept, prefix + others, prefix + cell, tokens.counts)


@lru_cache(maxsize=64)
def _cells(side: int, coarse: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first patch of each cell, all other patches, and the cell of each of the latter, each (1, N) int64.

    A side x side grid is divided into coarse x coarse cells.
    """
    line = torch.arange(side) * coarse // side
    cell = (line.unsqueeze(1) * coarse + line).flatten()
    order = cell.argsort(stable=True)
    is_first = torch.cat([torch.ones(1, dtype=torch.bool), cell[order].diff() > 0])
    others = order[~is_first]
    return order[is_first].unsqueeze(0), others.unsqueeze(0), cell[others].unsqueeze(0)


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return ("0.8", "0.6", "0.4", "0.2")


def build(argument: str | None, context: ReducerContext) -> Pooling:
    """`pooling:0.6` makes the grid 0.6 times as large after blocks 4, 7 and 10 of 12, counted from 1.

    Raises BadPlan for an argument that is not a keep rate.
    """
    keep = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < keep <= 1:
        raise BadPlan(
            f"pooling takes a keep rate above 0 and at most 1, as in pooling:0.6; got {argument or ''!r}"
        )
    return Pooling(keep, stages(context.config.depth))
