"""A head that names what happens in a clip: frames as the trunk left them, one token each, in time."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.blocks import Mlp
from foveate.models.layers.config import ViTConfig

WAVES = 16
"""Pairs of sine and cosine that tell a time."""


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """The shape of a clip head, and how it sees a clip at full."""

    classes: int
    frames: int = 16
    image_size: int = 112
    width: int = 192
    depth: int = 4
    heads: int = 3
    reads: int = 24
    """Features of a patch as the head reads it."""
    grid: int = 7
    """Rows and columns of regions that a frame's patches are pooled to."""
    glance_size: int = 64
    """Side of a frame, in pixels, for a glance at it."""
    glance_depth: int = 3
    """Blocks that a glance goes through."""


class ClipHead(nn.Module):
    """The temporal half of ViViT's factorised encoder ("ViViT: A Video Vision Transformer", section 3.3,
    model 2) over a frozen spatial half, with a small adapter between them ("Optimizing ViViT Training:
    Time and Memory Reduction for Action Recognition", section 3).

    It is causal in the order in which frames are given: what it says after each of them rests on those up
    to it, so that looking may stop at any. A frame is told by its time, so any of them in any order will do.
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
        """Patches (B, P, D) as they left that block, counted from 1, to their canvas (B, P, R)."""
        out: Tensor = self.readers[max(block, 1) - 1](grid)
        return out

    def pooled(self, canvas: Tensor) -> Tensor:
        """Patches (B, P, R) of a square frame to regions (B, R, G, G)."""
        side = math.isqrt(canvas.shape[1])
        square = canvas.transpose(1, 2).reshape(len(canvas), -1, side, side)
        return square if side == self.spec.grid else resample(square, self.spec.grid)

    def forward(self, regions: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """What is said after each frame, and which frames the last word rests on.

        regions: (B, T, R, G, G); at: (B, T) the time of each frame, from 0 to 1. Returns logits (B, T, C) and
        attention (B, T), averaged over blocks and heads.
        """
        seen = torch.arange(1, regions.shape[1] + 1, device=regions.device).view(-1, 1, 1, 1)
        # What differs from the frames so far is what moves. A still background would only be learnt by heart.
        moving = regions - (regions.float().cumsum(1) / seen).to(regions.dtype)
        x = self.frame(moving.flatten(2)) + self.time(waves(at).to(regions.dtype))
        rows = []
        for block in self.blocks:
            x, row = block(x)
            rows.append(row)
        logits: Tensor = self.classes(self.norm(x))
        return logits, torch.stack(rows).mean(0)

    def macs(self, frames: int) -> float:
        """Multiply-adds of so many frames of regions, the readers left out."""
        s, width = self.spec, self.spec.width
        tokens = s.reads * s.grid**2 * width + 2 * WAVES * width + width * s.classes
        blocks = s.depth * (12 * width**2 + 2 * frames * width)
        return float(frames * (tokens + blocks))


class CausalBlock(nn.Module):
    """A transformer block in which each token sees itself and those before it."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, W), and the last one's attention (B, T), averaged over heads."""
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)
        x = x + self.proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), weights[:, :, -1].float().mean(1)


def waves(at: Tensor) -> Tensor:
    """Times (B, T) from 0 to 1 as sines and cosines (B, T, 2 * WAVES) of half a turn to WAVES / 2 turns."""
    angle = at.float().unsqueeze(-1) * math.pi * torch.arange(1, WAVES + 1, device=at.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


def resample(square: Tensor, side: int) -> Tensor:
    """(B, R, s, s) to (B, R, side, side)."""
    sized = F.interpolate(
        square.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return sized.to(square.dtype)
