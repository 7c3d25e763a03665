"""Merging of all tokens that are more similar than a threshold, block by block.

"DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs" (arXiv 2504.17040), section 3.1: ToMe's
bipartite matching, where a threshold for each block, calibrated on a batch of images, takes the place of a
number of merges. So a simple picture keeps fewer tokens than a complex one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.config import ViTConfig
from foveate.models.layers.matching import pair_count, positions, split_by_parity
from foveate.models.layers.packing import keep_padded
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens

NEVER, ALWAYS = 2.0, -2.0
"""Thresholds that no pair of tokens exceeds, and that all pairs do."""


@dataclass(frozen=True, slots=True)
class MergeThresholds:
    """Thresholds of one tower that leave a number of patch tokens on average."""

    count: int
    """The average that they aim at, and the fewest patch tokens that stay of any picture."""
    thresholds: tuple[float, ...]
    """For each block, the cosine of two tokens' keys above which they merge."""
    tokens: tuple[float, ...]
    """The average number of patch tokens after each block on the images of the calibration."""


@dataclass(frozen=True, slots=True)
class Edges:
    """The best partner of every patch token at an even position, among those at odd positions."""

    scores: Tensor
    """(B, E) float32: the cosine of their keys; -inf without a partner, and beyond what may merge."""
    partners: Tensor
    """(B, E) int64: positions of the partners."""
    positions: Tensor
    """(E,) int64: positions of the tokens at even positions."""


def edges(tokens: Tokens, keys: Tensor, fewest: int) -> Edges | None:
    """The edges of ToMe's matching (section 3.1, equation 1). keys: (B, H, N, d). None without two patches.

    No more edges of a row have a score than leave `fewest` patch tokens: its weakest ones lose theirs.
    """
    prefix, index = tokens.prefix, torch.arange(len(tokens), device=keys.device)
    if len(tokens) - prefix < 2:
        return None
    present = tokens.counts > 0
    even, odd = split_by_parity(F.normalize(keys.mean(1, dtype=torch.float32), dim=2), prefix)
    present_even, present_odd = split_by_parity(present, prefix)
    even_positions, odd_positions = (part[0] for part in split_by_parity(index.unsqueeze(0), prefix))
    similarity = torch.matmul(even, odd.transpose(1, 2)).masked_fill(~present_odd.unsqueeze(1), -torch.inf)
    best, column = similarity.masked_fill(~present_even.unsqueeze(2), -torch.inf).max(2)
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    room = (present[:, prefix:].sum(1, keepdim=True) - fewest).clamp(min=0)
    return Edges(best.masked_fill(rank >= room, -torch.inf), odd_positions[column], even_positions)


@dataclass(frozen=True, slots=True)
class ThresholdMerging(Reducer):
    """After the attention of a block, all tokens at even positions merge that are similar enough to another.

    Attention is proportional to the size of tokens. A batch is as wide as its fullest row; shorter rows are
    padded with copies of the first prefix token with a count of 0, which attention ignores. The order of the
    remaining tokens is the image's, and not ToMe's, so that padding stays last.
    """

    thresholds: tuple[float, ...]
    """For each block, the cosine above which tokens merge."""
    fewest: int
    """Patch tokens that stay of every image."""
    averages: tuple[float, ...] = ()
    """The average number of patch tokens after each block, from the calibration; empty if it is not known."""
    adaptive = True
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The keys, at blocks that merge."""
        return Needs.KEYS if self.thresholds[block] < NEVER else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Upper bound of the tokens after each block, prefix included: an image without similar tokens."""
        return (tokens,) * depth

    def mean_after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """The averages of the calibration, rounded, prefix included."""
        if not self.averages:
            return self.after(tokens, prefix, depth)
        return tuple(min(tokens, prefix + round(average)) for average in self.averages)

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Matching by the mean keys of the heads. Mixing is part of it only where tokens merge."""
        return float(pair_count(tokens - config.prefix) * config.width // config.heads)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Merge along all edges above the block's threshold.

        Raises ValueError without the keys, or a prefix token to pad with.
        """
        if attention.keys is None or not tokens.prefix:
            raise ValueError("threshold merging needs the keys, and a prefix token to pad with")
        best = edges(tokens, attention.keys, self.fewest)
        if best is None:
            return Assignment(positions(tokens.counts), counts=tokens.counts)
        merges = best.scores > self.thresholds[block]
        return merge_padded(tokens, best, merges)


def merge_padded(tokens: Tokens, best: Edges, merges: Tensor) -> Assignment:
    """Merge the edges (B, E) bool: each token at an odd position becomes the mean of what merges into it.

    Rows with fewer merges than others have padding among the absorbed tokens: the first prefix token, which
    stays as it is.
    """
    prefix, counts = tokens.prefix, tokens.counts
    stays = counts[:, prefix:] > 0
    stays[:, best.positions - prefix] &= ~merges
    packed = keep_padded(stays, prefix, counts)
    number = merges.sum(1, keepdim=True)
    width = int(number.max())
    order = merges.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    padding = torch.arange(width, device=counts.device) >= number
    absorbed = best.positions[order].masked_fill(padding, 0)
    slots = prefix + stays.cumsum(1) - 1
    into = slots.gather(1, (best.partners - prefix).gather(1, order)).masked_fill(padding, 0)
    present = torch.arange(packed.kept.shape[1], device=counts.device) < prefix + stays.sum(1, keepdim=True)
    own = counts.gather(1, packed.kept) * present
    given = counts.gather(1, absorbed).masked_fill(padding, 0)
    total = own.scatter_add(1, into, given)
    filled = torch.where(total > 0, total, 1)
    share = given.new_zeros(*own.shape, width)
    share = share.scatter(1, into.unsqueeze(1), (given / filled.gather(1, into)).unsqueeze(1))
    own = torch.where(total > 0, own / filled, 1)
    return Assignment(packed.kept, absorbed, share, into, own, total)
