"""Heads that classify after a block in the middle: local ones for early blocks, global ones for late blocks.

"LGViT: Dynamic Early Exiting for Accelerating Vision Transformer" (ACM MM 2023): the local perception head
and the global aggregation head. Tokens of early blocks have attended to little context, so a convolution adds
local context. Tokens of late blocks have global context, so a sparse attention aggregates it.

Differences from the paper:

- The paper's batch norms follow a GELU or a linear map, so at inference they fold into the next map, except
  for a shift at the image's border. They are left out here. Layer norms before the head and before its
  classifier keep training stable instead. They need no statistics of the batch, so a row gives the same
  result in any batch.
- The authors' global head takes one patch out of each square. This one takes the mean of the remaining
  patches.
- Both kinds add the class token only. A distillation token has no classifier of its own here.

Attribute names of modules are parameter names in checkpoints, so they must not change.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Tokens


class ExitHead(nn.Module):
    """Pools the patches, adds the class token if the model pools it, and classifies."""

    temperature: Tensor
    """Scalar by which logits are divided: 1 until the head is calibrated."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.with_class_token = config.pool in ("token", "token_avg")
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.final_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.head = nn.Linear(config.width, config.classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits (B, C) of tokens after the head's block, which any reducer may have reduced."""
        return self.classify(self.pooled(tokens))

    def pooled(self, tokens: Tokens) -> Tensor:
        """The classifier's input: (B, D)."""
        pooled = self.pool_patches(tokens)
        out: Tensor = self.final_norm(tokens.x[:, 0] + pooled if self.with_class_token else pooled)
        return out

    def classify(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) to logits (B, C)."""
        logits: Tensor = self.head(pooled)
        return logits / self.temperature.to(logits.dtype)

    def pool_patches(self, tokens: Tokens) -> Tensor:
        """One feature vector (B, D) of the remaining patches."""
        raise NotImplementedError

    def macs(self, side: int, tokens: int) -> float:
        """Multiply-adds on `tokens` tokens, prefix included, of a grid of side x side patches."""
        raise NotImplementedError


class LocalHead(ExitHead):
    """Local perception head: 1x1 convolution, depth-wise k x k, 1x1, a residual, and the mean over patches.

    The layers after the depth-wise convolution's activation are linear. So the mean over patches is taken
    first and the last 1x1 convolution maps one vector instead of a grid.
    """

    def __init__(self, config: ViTConfig, kernel: int) -> None:
        """kernel: the odd side k of the depth-wise convolution."""
        super().__init__(config)
        width = config.width
        self.expand = nn.Linear(width, width)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.project = nn.Linear(width, width)

    def pool_patches(self, tokens: Tokens) -> Tensor:
        """One feature vector (B, D) of the remaining patches."""
        # A 1x1 convolution treats each token independently. It runs before tokens return to the grid: so it
        # costs less after a reduction, and the cells of dropped patches stay zero like the border padding.
        hidden = F.gelu(self.expand(self.norm(tokens.x)))
        local = F.gelu(self.depthwise(_square(tokens.with_features(hidden).grid())))
        present = tokens.source >= 0
        out: Tensor = self.project(_mean(local.flatten(2).transpose(1, 2), present))
        return out + _mean(tokens.grid(), present)

    def macs(self, side: int, tokens: int) -> float:
        """Multiply-adds on `tokens` tokens, prefix included, of a grid of side x side patches."""
        width, classes = self.head.in_features, self.head.out_features
        kernel = self.depthwise.kernel_size[0]
        mixed = tokens * width**2 + side**2 * kernel**2 * width
        return float(mixed + width**2 + width * classes)


class GlobalHead(ExitHead):
    """Global aggregation head: self-attention over averaged squares of patches, and the mean over squares.

    Queries and keys are half as wide as the trunk's. The mean over queries is taken of the attention weights
    instead of their outputs. The result is the same, and it costs less.
    """

    def __init__(self, config: ViTConfig, window: int) -> None:
        """window: the side of the averaged squares, in patches."""
        super().__init__(config)
        self.heads, self.window = config.heads, window
        self.narrow = config.heads * math.ceil(config.width / config.heads / 2)
        self.queries_keys = nn.Linear(config.width, 2 * self.narrow)
        self.values = nn.Linear(config.width, config.width)
        self.project = nn.Linear(config.width, config.width)

    def pool_patches(self, tokens: Tokens) -> Tensor:
        """One feature vector (B, D) of the remaining patches."""
        cells, filled = _averaged(tokens.with_features(self.norm(tokens.x)), self.window)
        queries, keys = map(self._split, self.queries_keys(cells).chunk(2, dim=-1))
        scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-2, -1))
        # The lowest number instead of -inf: an image without remaining patches must not become NaN.
        scores = scores.masked_fill(~filled[:, None, None], torch.finfo(scores.dtype).min)
        row = _mean(scores.softmax(dim=-1).flatten(0, 1), filled.repeat_interleave(self.heads, 0))
        mixed = torch.matmul(row.view(len(cells), self.heads, 1, -1), self._split(self.values(cells)))
        out: Tensor = self.project(mixed.flatten(1))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, M, H * d) to (B, H, M, d)."""
        batch, cells, _ = x.shape
        return x.reshape(batch, cells, self.heads, -1).transpose(1, 2)

    def macs(self, side: int, tokens: int) -> float:
        """Multiply-adds on a grid of side x side patches. Squares of patches are mapped, not tokens."""
        width, classes = self.head.in_features, self.head.out_features
        cells = math.ceil(side / self.window) ** 2
        mapped = cells * width * (2 * self.narrow + width)
        return float(mapped + cells**2 * self.narrow + cells * width + width**2 + width * classes)


def build(config: ViTConfig, spec: ExitSpec) -> ExitHead:
    """The head that a spec describes, for a trunk of this configuration."""
    return LocalHead(config, spec.size) if spec.kind == "local" else GlobalHead(config, spec.size)


def _square(grid: Tensor) -> Tensor:
    """Patches (B, P, D) as maps (B, D, side, side), without a copy: channels last."""
    batch, patches, width = grid.shape
    side = math.isqrt(patches)
    return grid.view(batch, side, side, width).permute(0, 3, 1, 2)


def _mean(x: Tensor, present: Tensor) -> Tensor:
    """Mean of x (B, P, D) over the patches that are present (B, P) bool: (B, D); zeros if none is."""
    total = torch.matmul(present.unsqueeze(1).to(x.dtype), x).squeeze(1)
    return total / present.sum(1, keepdim=True).clamp(min=1).to(x.dtype)


def _averaged(tokens: Tokens, window: int) -> tuple[Tensor, Tensor]:
    """Means over squares of patches (B, M, D), and True for squares with a remaining patch (B, M) bool.

    Dropped patches do not count in a mean. Squares at the border may be smaller.
    """
    grid = _square(tokens.grid())
    window = min(window, grid.shape[-1])
    present = _square((tokens.source >= 0).unsqueeze(-1)).to(grid.dtype)
    filled = F.avg_pool2d(present, window, ceil_mode=True)
    cells = F.avg_pool2d(grid, window, ceil_mode=True) / filled.clamp(min=1 / (2 * window**2))
    return cells.flatten(2).transpose(1, 2), filled.flatten(1) > 0
