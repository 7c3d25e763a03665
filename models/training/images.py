"""Bring training images to the range and the size of a model's input."""

import torch.nn.functional as F
from torch import Tensor

MEAN = STD = 0.5


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in -1..1."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def resized(images: Tensor, side: int) -> Tensor:
    """Normalised images (B, 3, H, W) at (B, 3, side, side)."""
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
