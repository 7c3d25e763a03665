"""What was looked at: which patches a plan kept, and until which block."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.models.vit import ElasticViT, Steps


@torch.inference_mode()
def kept_until(model: ElasticViT, images: Tensor, steps: Steps) -> NDArray[np.int64]:
    """For each patch, the number of blocks it went through as a token of its own.

    images: (B, 3, S, S) normalised. Returns (B, P) int64; steps.depth where a patch stayed to the
    end. A patch that was fused with others, or dropped, stops counting there.
    """
    tokens = model.embed(images)
    alone = torch.ones(tokens.source.shape, dtype=torch.bool, device=images.device)
    until = torch.zeros(tokens.source.shape, dtype=torch.int64, device=images.device)
    for index in range(steps.depth):
        tokens = model.blocks[index](tokens, steps.reducer, index)
        stands_for = tokens.counts.gather(1, tokens.source.clamp(min=0))
        alone &= (tokens.source >= 0) & (stands_for == 1)
        until += alone
    return until.cpu().numpy()
