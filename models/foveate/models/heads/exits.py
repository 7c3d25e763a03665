"""Heads that answer after a block in the middle: local ones for early exits, global ones for late exits.

"LGViT: Dynamic Early Exiting for Accelerating Vision Transformer" (ACM MM 2023), the local perception
head and the global aggregation head. Early blocks have not looked around yet, so a convolution does it
for them; late ones have, so a sparse attention gathers what they found.

The paper's batch norms follow a GELU or a linear map, so at inference they fold into the map that
comes next, but for a shift at the picture's border. They are left out here, and layer norms in front of
the head and of its classifier keep training stable instead: these need no statistics of the batch, so a
row means the same in any batch. Where the authors' global head takes one patch out of each square, this
one takes the mean of those that are left. Either kind adds the class token alone: a distillation token has
no classifier of its own here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Tokens


class ExitHead(nn.Module):
    """Pools the patches, adds the class token where the model answers from one, and classifies."""

    temperature: Tensor
    """Scalar that logits are divided by: 1 until the head is calibrated."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.with_class_token = config.pool == "token"
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.final_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.head = nn.Linear(config.width, config.classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens after the head's block, reduced in any way, to logits (B, C)."""
        return self.classify(self.pooled(tokens))

    def pooled(self, tokens: Tokens) -> Tensor:
        """What the classifier sees: (B, D)."""
        gathered = self.gather(tokens)
        out: Tensor = self.final_norm(tokens.x[:, 0] + gathered if self.with_class_token else gathered)
        return out

    def classify(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) to logits (B, C)."""
        logits: Tensor = self.head(pooled)
        return logits / self.temperature.to(logits.dtype)

    def gather(self, tokens: Tokens) -> Tensor:
        """One feature (B, D) from the patches that are left."""
        raise NotImplementedError

    def macs(self, side: int) -> float:
        """Multiply-adds on a grid of side x side patches, nothing reduced."""
        raise NotImplementedError


class LocalHead(ExitHead):
    """Local perception head: 1x1 convolution, depth-wise k x k, 1x1, a residual, and the mean over patches.

    What comes after the depth-wise convolution's activation is linear, so the mean over patches is taken
    first and the last 1x1 convolution maps one vector instead of a grid.
    """

    def __init__(self, config: ViTConfig, kernel: int) -> None:
        super().__init__(config)
        self.prefix = config.prefix
        self.expand = nn.Linear(config.width, config.width)
        self.depthwise = nn.Conv2d(
            config.width, config.width, kernel, padding=kernel // 2, groups=config.width
        )
        self.project = nn.Linear(config.width, config.width)

    def gather(self, tokens: Tokens) -> Tensor:
        # A 1x1 convolution treats tokens one by one: run before they go back on the grid, it costs less
        # after a reduction, and the cells of dropped patches stay zero like the padding at the border.
        hidden = F.gelu(self.expand(self.norm(tokens.x)))
        mixed = F.gelu(self.depthwise(_square(tokens.with_features(hidden).grid())))
        present = tokens.source >= 0
        out: Tensor = self.project(_mean(mixed.flatten(2).transpose(1, 2), present))
        return out + _mean(tokens.grid(), present)

    def macs(self, side: int) -> float:
        width, classes = self.head.in_features, self.head.out_features
        kernel = self.depthwise.kernel_size[0]
        mixed = (side**2 + self.prefix) * width**2 + side**2 * kernel**2 * width
        return float(mixed + width**2 + width * classes)


class GlobalHead(ExitHead):
    """Global aggregation head: self-attention over averaged squares of patches, and the mean over them.

    Queries and keys are half as wide as the trunk's. The mean over queries is taken of the attention
    weights and not of what they mix, which comes to the same and is cheaper.
    """

    def __init__(self, config: ViTConfig, window: int) -> None:
        super().__init__(config)
        self.heads, self.window = config.heads, window
        self.narrow = config.heads * math.ceil(config.width / config.heads / 2)
        self.queries_keys = nn.Linear(config.width, 2 * self.narrow)
        self.values = nn.Linear(config.width, config.width)
        self.project = nn.Linear(config.width, config.width)

    def gather(self, tokens: Tokens) -> Tensor:
        cells, seen = _averaged(tokens.with_features(self.norm(tokens.x)), self.window)
        queries, keys = map(self._split, self.queries_keys(cells).chunk(2, dim=-1))
        scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-2, -1))
        # The lowest number and not -inf: a picture without a patch left must not become NaN.
        scores = scores.masked_fill(~seen[:, None, None], torch.finfo(scores.dtype).min)
        row = _mean(scores.softmax(dim=-1).flatten(0, 1), seen.repeat_interleave(self.heads, 0))
        mixed = torch.matmul(row.view(len(cells), self.heads, 1, -1), self._split(self.values(cells)))
        out: Tensor = self.project(mixed.flatten(1))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, M, H * d) to (B, H, M, d)."""
        batch, cells, _ = x.shape
        return x.reshape(batch, cells, self.heads, -1).transpose(1, 2)

    def macs(self, side: int) -> float:
        width, classes = self.head.in_features, self.head.out_features
        cells = math.ceil(side / self.window) ** 2
        mapped = cells * width * (2 * self.narrow + width)
        return float(mapped + cells**2 * self.narrow + cells * width + width**2 + width * classes)


def build(config: ViTConfig, spec: ExitSpec) -> ExitHead:
    """The head that a spec describes, for this trunk."""
    return LocalHead(config, spec.size) if spec.kind == "local" else GlobalHead(config, spec.size)


def _square(grid: Tensor) -> Tensor:
    """Patches (B, P, D) as an image (B, D, side, side), without a copy: channels last."""
    batch, patches, width = grid.shape
    side = math.isqrt(patches)
    return grid.view(batch, side, side, width).permute(0, 3, 1, 2)


def _mean(x: Tensor, present: Tensor) -> Tensor:
    """Mean of (B, P, D) over the rows that are present (B, P): (B, D); zeros where none is."""
    total = torch.matmul(present.unsqueeze(1).to(x.dtype), x).squeeze(1)
    return total / present.sum(1, keepdim=True).clamp(min=1).to(x.dtype)


def _averaged(tokens: Tokens, window: int) -> tuple[Tensor, Tensor]:
    """Means over squares of patches (B, M, D), and which squares have a patch left (B, M).

    Dropped patches do not count in a mean; squares at the border may be cut off.
    """
    grid = _square(tokens.grid())
    window = min(window, grid.shape[-1])
    present = _square((tokens.source >= 0).unsqueeze(-1)).to(grid.dtype)
    filled = F.avg_pool2d(present, window, ceil_mode=True)
    cells = F.avg_pool2d(grid, window, ceil_mode=True) / filled.clamp(min=1 / (2 * window**2))
    return cells.flatten(2).transpose(1, 2), filled.flatten(1) > 0
