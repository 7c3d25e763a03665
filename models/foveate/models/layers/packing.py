"""Batches whose pictures keep different numbers of tokens."""

import torch
from torch import Tensor

from foveate.models.layers.tokens import Assignment


def packed(chosen: Tensor, prefix: int, counts: Tensor) -> Assignment:
    """Chosen patch tokens (B, P) bool in their order, padded to the width of the fullest row.

    Padding repeats the first prefix token and stands for 0 tokens, so that nothing attends to it where
    attention is proportional. counts: (B, N), whose type the new ones have.
    """
    held = chosen.sum(dim=1, keepdim=True)
    width = int(held.max())
    order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    filled = torch.arange(width, device=chosen.device) < held
    always = torch.arange(prefix, device=chosen.device).expand(len(chosen), -1)
    kept = torch.cat([always, (prefix + order).masked_fill(~filled, 0)], dim=1)
    ones = filled.new_ones(always.shape)
    return Assignment(kept, counts=torch.cat([ones, filled], dim=1).to(counts.dtype))
