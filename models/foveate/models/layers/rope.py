"""Rotary positions: queries and keys are rotated by angles that grow with the coordinates of their patch.

"RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3; with two coordinates as in
"EVA-02: A Visual Representation for Neon Genesis" (2023), section 2.1, and "DINOv3" (2025), section 3.2. Half
of the wavelengths are for each coordinate.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from foveate.models.layers.config import ViTConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotary positions of tokens. The batch dimension is 1 while all images have the same ones."""

    angles: Tensor
    """(B, N, d / 2) float32, where d is the width of a head: angle of each pair of features. It is linear in
    the coordinates, so a mean of angles is the angle of the mean position. Tokens without a position, such as
    the class token, have angles of 0: they are not rotated."""
    half: bool
    """Pairs are of a first and a second half of the features, not of neighbours."""
    cos: Tensor
    """(B, 1, N, d) in the model's precision."""
    sin: Tensor
    """(B, 1, N, d) in the model's precision."""

    @classmethod
    def of(cls, angles: Tensor, half: bool, dtype: torch.dtype) -> "Rotation":
        """The rotation by these angles (B, N, d / 2)."""
        pairs = torch.cat([angles, angles], -1) if half else angles.repeat_interleave(2, -1)
        cos, sin = (function(pairs).unsqueeze(1).to(dtype) for function in (torch.cos, torch.sin))
        return cls(angles, half, cos, sin)

    def moved(self, angles: Tensor) -> "Rotation":
        """The same kind of rotation for other tokens. angles: (B, N', d / 2)."""
        return Rotation.of(angles, self.half, self.cos.dtype)

    def rows(self, index: Tensor) -> "Rotation":
        """Only the samples at the positions `index` (B',)."""
        if len(self.angles) == 1:
            return self
        return Rotation(self.angles[index], self.half, self.cos[index], self.sin[index])

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (B, H, N, d)."""
        if self.half:
            first, second = x.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * self.cos + turned * self.sin


@lru_cache(maxsize=64)
def initial_rotation(config: ViTConfig, side: int, device: torch.device, dtype: torch.dtype) -> Rotation:
    """The rotation of the tokens that enter the trunk, for a grid of side x side patches."""
    with torch.inference_mode(False):  # it may be used in training later
        patches = patch_angles(config, side)
        angles = torch.cat([patches.new_zeros(config.prefix, patches.shape[1]), patches])
        return Rotation.of(angles.unsqueeze(0).to(device), config.rope_half, dtype)


def patch_angles(config: ViTConfig, side: int) -> Tensor:
    """Angles of the patches of a grid of side x side: (side * side, d / 2) float32, row by row.

    They are those of timm's `RotaryEmbeddingCat` and `RotaryEmbeddingDinoV3` to the last bit.
    """
    bands = config.width // config.heads // 4
    steps = torch.arange(bands, dtype=torch.float32)
    if config.rope == "dinov3":
        line = 2 * ((torch.arange(0.5, side) + config.rope_offset) / side) - 1
        wavelengths = config.rope_temperature ** (2 * steps / (2 * bands))
        scaled = 2 * math.pi * _coordinates(line, config.rope_xy) / wavelengths
        return scaled.flatten(1)
    line = torch.arange(side, dtype=torch.float32) + config.rope_offset
    if config.rope_reference:
        line = line / side * config.rope_reference
    frequencies = 1 / config.rope_temperature ** (steps / bands)
    return (_coordinates(line, config.rope_xy) * frequencies).flatten(1)


def _coordinates(line: Tensor, column_first: bool) -> Tensor:
    """Coordinates (side * side, 2, 1) of the patches of a grid. line: (side,), of its rows and columns."""
    row, column = torch.meshgrid(line, line, indexing="ij")
    pair = (column, row) if column_first else (row, column)
    return torch.stack(pair, -1).flatten(0, 1).unsqueeze(-1)
