"""Padding of batches whose images keep different numbers of tokens."""

import torch
from torch import Tensor

from foveate.models.layers.tokens import Assignment


def keep_padded(chosen: Tensor, prefix: int, counts: Tensor) -> Assignment:
    """An assignment that keeps the prefix and the chosen patch tokens (B, P) bool, in their order.

    All rows are padded to the width of the fullest one. Padding repeats the first prefix token with a count
    of 0, so proportional attention ignores it. counts: (B, N), the counts before; the new counts have the
    same type.
    """
    kept_counts = chosen.sum(dim=1, keepdim=True)
    width = int(kept_counts.max())
    order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    filled = torch.arange(width, device=chosen.device) < kept_counts
    prefix_positions = torch.arange(prefix, device=chosen.device).expand(len(chosen), -1)
    kept = torch.cat([prefix_positions, (prefix + order).masked_fill(~filled, 0)], dim=1)
    ones = filled.new_ones(prefix_positions.shape)
    return Assignment(kept, counts=torch.cat([ones, filled], dim=1).to(counts.dtype))
