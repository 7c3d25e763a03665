"""A head that classifies a video clip: one token for each frame's trunk features, and attention over time.

Attribute names of modules are parameter names in checkpoints, and fields of ClipSpec are keys of model
cards, so they must not change.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.blocks import Mlp
from foveate.models.layers.config import ViTConfig

WAVES = 16
"""Pairs of sine and cosine that encode a time."""


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """The shape of a clip head, and the frames of a clip at full compute."""

    classes: int
    frames: int = 16
    """Frames of a clip at full compute."""
    image_size: int = 112
    """Side of a frame, in pixels."""
    width: int = 192
    """Features of a frame's token."""
    depth: int = 4
    """Blocks over time."""
    heads: int = 3
    """Attention heads of each block."""
    reads: int = 24
    """Features of a patch in the head."""
    grid: int = 7
    """Rows and columns of regions to which a frame's patches are pooled."""
    glance_size: int = 64
    """Side of a frame, in pixels, in a glance: a cheap first pass over all frames."""
    glance_depth: int = 3
    """Blocks of the trunk that a glance runs."""


class ClipHead(nn.Module):
    """The temporal half of ViViT's factorised encoder ("ViViT: A Video Vision Transformer", section 3.3,
    model 2) over a frozen spatial half, with a small adapter between them ("Optimizing ViViT Training:
    Time and Memory Reduction for Action Recognition", section 3).

    It is causal in the order of the frames: the logits after a frame depend on that frame and the earlier
    ones, so processing may stop after any frame. Each frame carries its time, so frames may be given in any
    order.
    """

    def __init__(self, config: ViTConfig, spec: ClipSpec) -> None:
        super().__init__()
        self.spec, width = spec, spec.width
        self.readers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width, eps=config.eps), nn.Linear(config.width, spec.reads))
            for _ in range(config.depth)
        )
        self.frame = nn.Linear(spec.reads * spec.grid**2, width)
        self.time = nn.Linear(2 * WAVES, width)
        shape = ViTConfig(width=width, depth=spec.depth, heads=spec.heads)
        self.blocks = nn.ModuleList(CausalBlock(shape) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.classes = nn.Linear(width, spec.classes)

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Map patches (B, P, D) after `block` blocks to patch features (B, P, R)."""
        out: Tensor = self.readers[max(block, 1) - 1](grid)
        return out

    def pooled(self, features: Tensor) -> Tensor:
        """Pool patch features (B, P, R) of a square frame to regions (B, R, G, G)."""
        side = math.isqrt(features.shape[1])
        square = features.transpose(1, 2).reshape(len(features), -1, side, side)
        return square if side == self.spec.grid else resample(square, self.spec.grid)

    def forward(self, regions: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Logits after each frame (B, T, C), and the last frame's attention to all frames (B, T).

        regions: (B, T, R, G, G). at: (B, T), the time of each frame, from 0 to 1. The attention is averaged
        over blocks and heads.
        """
        frames_so_far = torch.arange(1, regions.shape[1] + 1, device=regions.device).view(-1, 1, 1, 1)
        # The difference from the mean of the frames so far is motion. With a still background in its input,
        # the head would only memorise backgrounds.
        motion = regions - (regions.float().cumsum(1) / frames_so_far).to(regions.dtype)
        x = self.frame(motion.flatten(2)) + self.time(waves(at).to(regions.dtype))
        rows = []
        for block in self.blocks:
            x, row = block(x)
            rows.append(row)
        logits: Tensor = self.classes(self.norm(x))
        return logits, torch.stack(rows).mean(0)

    def macs(self, frames: int) -> float:
        """Multiply-adds for the regions of this many frames, without the readers."""
        s, width = self.spec, self.spec.width
        tokens = s.reads * s.grid**2 * width + 2 * WAVES * width + width * s.classes
        blocks = s.depth * (12 * width**2 + 2 * frames * width)
        return float(frames * (tokens + blocks))


class CausalBlock(nn.Module):
    """A transformer block in which each token attends to itself and the tokens before it."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, W), and the last token's attention (B, T), averaged over heads."""
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        x = x + self.proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), weights[:, :, -1].float().mean(1)


def waves(at: Tensor) -> Tensor:
    """Encode times (B, T) from 0 to 1 as sines and cosines (B, T, 2 * WAVES).

    The frequencies run from half a period to WAVES / 2 periods.
    """
    angle = at.float().unsqueeze(-1) * math.pi * torch.arange(1, WAVES + 1, device=at.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


def resample(square: Tensor, side: int) -> Tensor:
    """Resize maps (B, R, s, s) to (B, R, side, side)."""
    sized = F.interpolate(
        square.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return sized.to(square.dtype)
