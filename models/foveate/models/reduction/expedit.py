"""Expedit: cluster the tokens of a frozen transformer at one block, and restore them at the end.

"Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning" (NeurIPS 2022), section
3.2: the token clustering layer, a k-means whose clusters start as a coarser grid and stay near it, and the
token reconstruction layer, which mixes each patch from the clusters that were most like it. Neither has
weights. Class and other prefix tokens go on as they are.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint
from foveate.models.layers.matching import positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.5", "0.7@6")
"""Arguments the contract tests use; the first is the identity."""

ITERATIONS = 5
REACH = 2
"""Clusters this many rows or columns away from a token's own cell are candidates, and none further away."""
SHARPNESS = 0.01
"""What squared distances of features are multiplied by: of the authors' settings, Segment Anything's."""
NEAREST = 20
"""Clusters that a patch is restored from."""


@dataclass(frozen=True, slots=True)
class Expedit(Reducer):
    """Before one block, the grid of patches becomes a grid of clusters with `share` as many rows."""

    share: float
    block: int
    """Counted from 0."""
    point = ReductionPoint.BEFORE

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if self.share < 1 and block == self.block else None

    def left(self, tokens: int, prefix: int) -> int:
        return prefix + self._side(math.isqrt(tokens - prefix)) ** 2

    def _side(self, side: int) -> int:
        """Rows of clusters, of which there are at least one."""
        return max(1, min(side, round(self.share * side)))

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        prefix = tokens.prefix
        x = tokens.x[:, prefix:]
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1]:
            raise BadPlan("expedit clusters a square grid of patches, before any other reduction")
        share, parts = clustered(x, self._side(side))
        here = positions(tokens.counts)
        counts = torch.cat([tokens.counts[:, :prefix], share.sum(2)], dim=1)
        weights = share / share.sum(2, keepdim=True).clamp(min=1e-16)
        return Assignment(here[:, :prefix], here[:, prefix:], weights, parts=parts, counts=counts)


def clustered(
    x: Tensor,
    rows: int,
    iterations: int = ITERATIONS,
    reach: int = REACH,
    sharpness: float = SHARPNESS,
    nearest: int = NEAREST,
) -> tuple[Tensor, Tensor]:
    """Patches (B, P, D) of a square grid to clusters in a square grid with so many rows.

    Gives how much each patch belongs to each cluster (B, J, P) float32, columns of which add up to 1
    (equation 2), and what each patch is restored from (B, P, J) float32, rows of which do (equation 4).
    """
    x = x.float()
    side = math.isqrt(x.shape[1])
    grid = x.transpose(1, 2).reshape(len(x), -1, side, side)
    centres = F.adaptive_avg_pool2d(grid, rows).flatten(2).transpose(1, 2)
    far = _far(side, rows, reach, x.device)
    share = torch.zeros(len(x), rows * rows, x.shape[1], device=x.device)
    for _ in range(iterations):
        share = (-sharpness * _apart(centres, x)).masked_fill(far, -math.inf).softmax(1)
        centres = share @ x / share.sum(2, keepdim=True).clamp(min=1e-16)
    closeness = -sharpness * _apart(x, centres)
    best = closeness.topk(min(nearest, rows * rows), dim=2)
    parts = torch.zeros_like(closeness).scatter(2, best.indices, best.values.softmax(2))
    return share, parts


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of (B, N, D) and (B, M, D): (B, N, M)."""
    return torch.cdist(a, b).square()


def _far(side: int, rows: int, reach: int, device: torch.device) -> Tensor:
    """Which patches are too far from each cluster to belong to it: (rows * rows, side * side) bool."""
    cell = torch.arange(side, device=device) * rows // side
    row, column = cell.repeat_interleave(side), cell.repeat(side)
    own = torch.arange(rows, device=device)
    own_row, own_column = own.repeat_interleave(rows).unsqueeze(1), own.repeat(rows).unsqueeze(1)
    return ((row - own_row).abs() > reach) | ((column - own_column).abs() > reach)


def build(argument: str | None, context: ReducerContext) -> Expedit:
    """`expedit:0.7@6`: from block 6 on, counted from 1, clusters in 0.7 times as many rows and columns.

    Without a block it is the one after a third of them; `expedit:1` is the identity. Raises BadPlan for
    another argument.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(?:@([0-9]{1,3}))?", argument or "")
    share = float(match[1]) if match else math.nan
    depth = context.config.depth
    block = int(match[2]) if match and match[2] else depth // 3 + 1
    if not 0 < share <= 1 or not 1 <= block <= depth:
        raise BadPlan(
            f"expedit takes a share of the rows, as in 0.7, and a block of {depth}, as in 0.7@6; "
            f"got {argument or ''!r}"
        )
    return Expedit(share, block - 1)
