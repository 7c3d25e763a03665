"""Bipartite soft matching, and the assignment that pools what it paired: common to ToMe and MCTF.

"Token Merging: Your ViT But Faster" (ICLR 2023), section 3 and appendix D.
"""

import torch
from torch import Tensor

from foveate.models.layers.tokens import Assignment


def positions(like: Tensor) -> Tensor:
    """0, 1, ... N - 1 for each sample: (B, N) int64, where `like` is (B, N, ...)."""
    return torch.arange(like.shape[1], device=like.device).expand(len(like), -1)


def halves(x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """What (B, N, ...) holds for the patch tokens at even and at odd positions of the whole sequence."""
    return x[:, prefix + prefix % 2 :: 2], x[:, prefix | 1 :: 2]


def by_strength(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's best edge, the strongest edges first.

    scores: (B, R, C). Gives the rows in that order and the column that each is drawn to, both (B, R)
    int64. Between equals, the earlier row comes first.
    """
    best, column = scores.max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)
    return order, column.gather(1, order)


def pooled(kept: Tensor, absorbed: Tensor, into: Tensor, weight: Tensor) -> Assignment:
    """Each of the K tokens becomes the mean of itself and what it absorbs, weighted by `weight`.

    kept: (B, K), absorbed and into: (B, M), as in an Assignment; weight: (B, N), above 0.
    """
    own, given = weight.gather(1, kept), weight.gather(1, absorbed)
    total = own.scatter_add(1, into, given)
    given = given / total.gather(1, into)
    share = weight.new_zeros(*kept.shape, absorbed.shape[1])
    share = share.scatter(1, into.unsqueeze(1), given.unsqueeze(1))
    return Assignment(kept, absorbed, share, into, own / total)
