"""Bipartite soft matching of tokens, and the assignment that merges matched tokens. ToMe and MCTF share it.

"Token Merging: Your ViT But Faster" (ICLR 2023), section 3 and appendix D.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Assignment

MERGED_SHARES = (0.25, 0.5, 0.75, 0.9)
"""Shares of all patches that leave from the first block to the last, in the plans that profiling tries."""


def positions(like: Tensor) -> Tensor:
    """Positions 0 to N - 1 for each sample: (B, N) int64, where `like` is (B, N, ...)."""
    return torch.arange(like.shape[1], device=like.device).expand(len(like), -1)


def split_by_parity(x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Rows of x (B, N, ...) for patch tokens at even and at odd positions.

    Positions count from the first prefix token. Prefix tokens are in neither part.
    """
    return x[:, prefix + prefix % 2 :: 2], x[:, prefix | 1 :: 2]


def pair_count(patches: int) -> int:
    """Number of pairs of patch tokens at even and at odd positions."""
    return (patches // 2) * (patches - patches // 2)


def best_edges(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best edge of each row, strongest first.

    scores: (B, R, C). Returns the rows in that order and each row's best column, both (B, R) int64. Among
    equal scores, the earlier row comes first.
    """
    best, column = scores.max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)
    return order, column.gather(1, order)


def merge(kept: Tensor, absorbed: Tensor, into: Tensor, weight: Tensor) -> Assignment:
    """An assignment that turns each kept token into the mean of itself and the tokens it absorbs.

    kept: (B, K); absorbed and into: (B, M), as in an Assignment. weight: (B, N), each above 0, weights the
    mean.
    """
    own, given = weight.gather(1, kept), weight.gather(1, absorbed)
    total = own.scatter_add(1, into, given)
    given = given / total.gather(1, into)
    share = weight.new_zeros(*kept.shape, absorbed.shape[1])
    share = share.scatter(1, into.unsqueeze(1), given.unsqueeze(1))
    return Assignment(kept, absorbed, share, into, own / total)


def tokens_per_block(config: ViTConfig, image_size: int) -> Sequence[str]:
    """Tokens that leave at every block, for reducers that take such a number: one for each MERGED_SHARES."""
    patches = config.patches(image_size)
    counts = (max(1, round(share * patches / config.depth)) for share in MERGED_SHARES)
    return [str(count) for count in dict.fromkeys(counts)]
