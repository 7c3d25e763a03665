"""DyMU: similar patches merge inside the tower, and what is left of them into a fixed number of tokens.

"DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs" (arXiv 2504.17040). The tower runs under a
threshold for each block (section 3.1, `layers.threshold_merging`), which leaves more tokens of a complex
picture, and never fewer than the plan's. Rounds of the same matching, without a threshold, then merge those
to the plan's number, so that all pictures have equally many visual tokens. A model without thresholds for
this number merges behind the tower alone. Virtual unmerging (section 3.2) is in `vlm.unmerging`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.threshold_merging import MergeThresholds, ThresholdMerging
from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    VisualAssignment,
    clusters,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "16:unmerge", "5", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""

ROUND_SHARE = 0.25
"""The largest share of the tokens that merge in one round. Half of them could: then dissimilar ones would."""


@dataclass(frozen=True, slots=True)
class PatchMerging(Compression):
    """Merges the most similar patches until `count` tokens are left."""

    count: int
    grid: tuple[int, int]
    unmerges: bool = False
    thresholds: MergeThresholds | None = None
    """Those of the tower for this count; None merges behind the tower alone."""

    def reducer(self, tower: ViTConfig) -> ThresholdMerging | None:
        """Merging inside the tower; None without thresholds for it, or without a prefix token to pad with."""
        known = self.thresholds
        if known is None or len(known.thresholds) != tower.depth or not tower.prefix:
            return None
        return ThresholdMerging(known.thresholds, self.count, known.tokens)

    def macs(self, width: int, question: int) -> float:
        """Matching in each round. If the tower merges, this is an upper bound."""
        total, tokens = 0, self.grid[0] * self.grid[1]
        positions = 2 * self.count * tokens
        while tokens > self.count:
            total += -(-tokens // 2) * (tokens // 2) * width
            tokens -= _merging(tokens, self.count)
        return float(total + positions)

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """Tokens in the order of their first patches, each at the mean position of its patches."""
        positions = patches.positions(self.grid)
        owners = merge_rounds(patches.vectors.float(), first_of_group(patches), self.count)
        return clusters(owners, self.count, positions)


def first_of_group(patches: PatchVectors) -> Tensor:
    """The first patch of the token that each patch is part of behind the tower: (B, P) int64."""
    if patches.groups is None:
        batch, length, _ = patches.vectors.shape
        return torch.arange(length, device=patches.vectors.device).expand(batch, -1)
    groups = patches.groups
    return (groups.unsqueeze(2) == groups.unsqueeze(1)).to(torch.uint8).argmax(2)


def merge_rounds(vectors: Tensor, owners: Tensor, count: int) -> Tensor:
    """The first patch of the merged token that each patch is part of: (B, P) int64, `count` different ones.

    vectors: (B, P, D) float32, compared by their cosine; a token has the mean of its patches'. owners: (B, P)
    int64, the first patch of the token that each patch belongs to before. Raises ValueError if a picture has
    fewer tokens than `count`.
    """
    while True:
        is_first = owners == torch.arange(owners.shape[1], device=owners.device)
        alive = is_first.sum(1)
        if int(alive.min()) < count:
            raise ValueError(f"a picture has {int(alive.min())} tokens, fewer than {count}")
        if int(alive.max()) == count:
            return owners
        owners = _merge_once(vectors, owners, is_first, alive, count)


def _merging(tokens: int, count: int) -> int:
    """Tokens that merge in one round of a picture with `tokens` tokens, more than `count`."""
    return min(tokens - count, max(1, math.floor(tokens * ROUND_SHARE)))


def _merge_once(vectors: Tensor, owners: Tensor, is_first: Tensor, alive: Tensor, count: int) -> Tensor:
    """The owners (B, P) after one round of bipartite matching; tokens are paired off in the image's order."""
    batch, width = len(vectors), int(alive.max())
    numbers = (is_first.cumsum(1) - 1).gather(1, owners)
    # On a CPU, adding rows of the whole batch is eight times as fast as `scatter_add` along each sample.
    first = torch.arange(0, batch * width, width, device=vectors.device).unsqueeze(1)
    sums = vectors.new_zeros(batch * width, vectors.shape[2])
    sums = sums.index_add(0, (numbers + first).flatten(), vectors.flatten(0, 1)).view(batch, width, -1)
    present = torch.arange(width, device=vectors.device) < alive.unsqueeze(1)
    unit = F.normalize(sums, dim=2)  # the direction of a sum is that of the mean
    similarity = torch.matmul(unit[:, ::2], unit[:, 1::2].transpose(1, 2))
    similarity = similarity.masked_fill(~present[:, None, 1::2], -torch.inf)
    best, column = similarity.masked_fill(~present[:, ::2, None], -torch.inf).max(2)
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merging = torch.tensor([_merging(n, count) if n > count else 0 for n in alive.tolist()])
    merges = rank < merging.to(rank.device).unsqueeze(1)
    into = torch.arange(width, device=vectors.device).repeat(batch, 1)
    into[:, ::2] = torch.where(merges, 2 * column + 1, into[:, ::2])
    return _first_patches(into.gather(1, numbers), width)


def _first_patches(numbers: Tensor, width: int) -> Tensor:
    """The first patch with the same number as each patch: (B, P) int64 below `width` to (B, P) int64."""
    index = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    first = index.new_full((len(numbers), width), numbers.shape[1])
    return first.scatter_reduce(1, numbers, index, "amin").gather(1, numbers)


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model, with and without unmerging."""
    return [text + option for text in usual_counts(context) for option in ("", ":unmerge")]


def build(argument: str | None, context: CompressionContext) -> PatchMerging:
    """`merge:49` merges similar patches to 49 tokens; `merge:49:unmerge` weighs each by its patches.

    Raises BadPlan for another argument.
    """
    number, separator, option = (argument or "").partition(":")
    if separator and option != "unmerge":
        raise BadPlan(
            f"merge takes a number of visual tokens, and unmerge if wanted, as in 49:unmerge; "
            f"got {(argument or '')[:40]!r}"
        )
    count = token_count("merge", number, context)
    return PatchMerging(count, context.grid, bool(separator), context.thresholds.get(count))
