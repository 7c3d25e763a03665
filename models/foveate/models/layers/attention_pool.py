"""Attention pooling: one learned query reads all tokens.

The multi-head attention pooling of "Scaling Vision Transformers" (2022), section 2.2, as SigLIP and the
Perception Encoder use it. Parameter names are those of timm's `AttentionPoolLatent`.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from foveate.models.layers.blocks import Mlp
from foveate.models.layers.config import ViTConfig


class AttentionPool(nn.Module):
    """Attention of a learned query over the tokens, then an MLP with a residual."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.pool_heads or config.heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.eps)
        plain = replace(config, gated_mlp=False, mlp_norm=False)
        self.mlp = Mlp(replace(plain, mlp_ratio=config.pool_ratio or config.mlp_ratio))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Tokens (B, N, D) to pooled features (B, D).

        counts: (B, N), the number of input tokens that each token represents. Its logarithm is added to the
        scores, as in proportional attention (ToMe, equation 1): merging equal tokens changes nothing, and
        padding, with a count of 0, is ignored.
        """
        batch, length, width = x.shape
        q = self.q(self.latent).view(1, 1, self.heads, -1).transpose(1, 2)
        kv = self.kv(x).view(batch, length, 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        weights = (scores + counts.log()[:, None, None].to(scores.dtype)).softmax(-1)
        pooled: Tensor = self.proj(torch.matmul(weights, v).view(batch, width))
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out
