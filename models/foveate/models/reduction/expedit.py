"""Expedit: cluster the tokens of a frozen transformer at one block, and restore them at the end.

"Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning" (NeurIPS 2022), section
3.2. The token clustering layer is a k-means whose clusters start as a coarser grid and stay close to it. The
token reconstruction layer mixes each patch from the clusters that were most similar to it. Neither layer has
weights. Class and other prefix tokens stay as they are.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.matching import positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.5", "0.7@6")
"""Arguments the contract tests use; the first is the identity."""

ITERATIONS = 5
"""Iterations of k-means."""
REACH = 2
"""A patch may join clusters up to this many rows or columns away from its own cell."""
SHARPNESS = 0.01
"""Factor of squared feature distances. Among the authors' settings, it is the one for Segment Anything."""
NEAREST = 20
"""Clusters from which a patch is restored."""


@dataclass(frozen=True, slots=True)
class Expedit(Reducer):
    """Before one block, a grid of clusters with `share` as many rows replaces the grid of patches."""

    share: float
    """Rows of clusters per row of patches, above 0 and at most 1."""
    block: int
    """Counted from 0."""
    point = ReductionPoint.BEFORE

    def needs(self, block: int) -> Needs | None:
        """No attention, at its block."""
        return Needs.NOTHING if self.share < 1 and block == self.block else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after its block, prefix included."""
        return prefix + self._side(math.isqrt(tokens - prefix)) ** 2

    def _side(self, side: int) -> int:
        """Number of rows of clusters, at least 1."""
        return max(1, min(side, round(self.share * side)))

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Distances and means of k-means, distances for the restoration, and means of the clusters."""
        left = tokens - config.prefix
        return 2 * (ITERATIONS + 1) * self._side(math.isqrt(left)) ** 2 * left * config.width

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Replace all patch tokens by clusters. Raises BadPlan unless the patches are a square grid."""
        prefix = tokens.prefix
        x = tokens.x[:, prefix:]
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1]:
            raise BadPlan("expedit clusters a square grid of patches, before any other reduction")
        share, parts = cluster(x, self._side(side))
        index = positions(tokens.counts)
        counts = torch.cat([tokens.counts[:, :prefix], share.sum(2)], dim=1)
        weights = share / share.sum(2, keepdim=True).clamp(min=1e-16)
        return Assignment(index[:, :prefix], index[:, prefix:], weights, parts=parts, counts=counts)


def cluster(
    x: Tensor,
    rows: int,
    iterations: int = ITERATIONS,
    reach: int = REACH,
    sharpness: float = SHARPNESS,
    nearest: int = NEAREST,
) -> tuple[Tensor, Tensor]:
    """Cluster patches (B, P, D) of a square grid into J = rows * rows clusters.

    Returns the share of each patch in each cluster (B, J, P) float32, whose columns add up to 1 (equation 2),
    and the weights that restore each patch from the clusters (B, P, J) float32, whose rows add up to 1
    (equation 4).
    """
    x = x.float()
    side = math.isqrt(x.shape[1])
    grid = x.transpose(1, 2).reshape(len(x), -1, side, side)
    centres = F.adaptive_avg_pool2d(grid, rows).flatten(2).transpose(1, 2)
    out_of_reach = _out_of_reach(side, rows, reach, x.device)
    share = torch.zeros(len(x), rows * rows, x.shape[1], device=x.device)
    for _ in range(iterations):
        affinity = -sharpness * _squared_distances(centres, x)
        share = affinity.masked_fill(out_of_reach, -math.inf).softmax(1)
        centres = share @ x / share.sum(2, keepdim=True).clamp(min=1e-16)
    closeness = -sharpness * _squared_distances(x, centres)
    best = closeness.topk(min(nearest, rows * rows), dim=2)
    parts = torch.zeros_like(closeness).scatter(2, best.indices, best.values.softmax(2))
    return share, parts


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between rows of (B, N, D) and (B, M, D): (B, N, M)."""
    return torch.cdist(a, b).square()


def _out_of_reach(side: int, rows: int, reach: int, device: torch.device) -> Tensor:
    """True for patches too far from a cluster to join it: (rows * rows, side * side) bool."""
    cell = torch.arange(side, device=device) * rows // side
    row, column = cell.repeat_interleave(side), cell.repeat(side)
    index = torch.arange(rows, device=device)
    cluster_row, cluster_column = index.repeat_interleave(rows).unsqueeze(1), index.repeat(rows).unsqueeze(1)
    return ((row - cluster_row).abs() > reach) | ((column - cluster_column).abs() > reach)


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels: shares of the rows, at a third, a
    half, two thirds and five sixths of the depth. None without a dense head, which restores the patches."""
    depth = context.config.depth
    blocks = sorted({max(1, round(depth * part / 6)) for part in (2, 3, 4, 5)})
    return [f"{share}@{block}" for share in ("0.7", "0.5") for block in blocks if context.dense is not None]


def build(argument: str | None, context: ReducerContext) -> Expedit:
    """`expedit:0.7@6`: from block 6 on, counted from 1, clusters in 0.7 times as many rows and columns.

    The default block is the first one after a third of the blocks; `expedit:1` is the identity. Raises
    BadPlan for another argument.
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
