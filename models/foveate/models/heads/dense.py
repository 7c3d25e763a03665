"""A head that names every pixel: what the patches say, drawn along the picture's own edges."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.geometry import Geometry

STRIDE = 4
"""Pixels of the picture a score stands for, in each direction."""


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """The shape of a dense head."""

    classes: int
    """The background among them, as class 0."""
    width: int = 96
    """Features of a patch as the head reads it."""
    fine: int = 48
    """Features of a square of STRIDE x STRIDE pixels."""


class DenseHead(nn.Module):
    """Reads patches after any block, so that a patch may leave the trunk when it likes.

    What is read of each patch, its canvas, is in one space whatever the block ("Dynamic Token Pruning in
    Plain Vision Transformers for Semantic Segmentation", section 3.2, has a head for each stage instead).
    A patch's canvas already names its class; the decoder then shares it out among the patch's pixels.
    """

    def __init__(self, g: Geometry, spec: DenseSpec) -> None:
        super().__init__()
        width, fine = spec.width, spec.fine
        self.spec, self.patch_size = spec, g.patch_size
        self.readers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(g.width, eps=g.eps), nn.Linear(g.width, width)) for _ in range(g.depth)
        )
        self.namer = nn.Linear(width, spec.classes)
        self.context = nn.Sequential(Residual(width), Residual(width))
        self.spread = nn.Linear(width, fine * (g.patch_size // STRIDE) ** 2)
        self.detail = nn.Sequential(
            nn.Conv2d(3, fine // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(fine // 2, fine, 3, stride=2, padding=1),
        )
        self.refine = nn.Sequential(Residual(fine), Residual(fine))
        self.classes = nn.Conv2d(fine, spec.classes, 1)

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Patches (B, P, D) as they left that block, counted from 1, to their canvas (B, P, W)."""
        out: Tensor = self.readers[max(block, 1) - 1](grid)
        return out

    def name(self, canvas: Tensor) -> Tensor:
        """What each patch shows for the most part: (B, P, W) to scores (B, P, C)."""
        scores: Tensor = self.namer(F.gelu(canvas))
        return scores

    def decode(self, canvas: Tensor, detail: Tensor) -> Tensor:
        """The scores of each class at each square of pixels: (B, C, S / 4, S / 4).

        canvas: (B, P, W); detail: (B, F, S / 4, S / 4), the head's `detail` of the picture.
        """
        side, up = round(canvas.shape[1] ** 0.5), self.patch_size // STRIDE
        canvas = canvas.transpose(1, 2).view(len(canvas), -1, side, side)
        canvas = self.context(F.gelu(canvas))
        coarse = canvas.flatten(2).transpose(1, 2)
        fine = self.spread(coarse).transpose(1, 2).view(len(canvas), -1, side, side)
        fine = self.refine(F.pixel_shuffle(fine, up) + detail)
        named = self.namer(coarse).transpose(1, 2).view(len(canvas), -1, side, side)
        scores: Tensor = self.classes(F.gelu(fine))
        return scores + F.interpolate(named, scale_factor=up, mode="bilinear", align_corners=False)

    def macs(self, side: int) -> float:
        """Multiply-adds for a grid of side x side patches, one reader among them."""
        s, patches = self.spec, side * side
        pixels = patches * (self.patch_size // STRIDE) ** 2
        read = patches * (self.readers[0][1].in_features * s.width + s.width * s.classes)  # type: ignore[index]
        context = 2 * patches * s.width * (9 + s.width)
        detail = pixels * (4 * 27 * s.fine // 2 + 9 * s.fine // 2 * s.fine)
        refine = 2 * pixels * s.fine * (9 + s.fine) + pixels * s.fine * s.classes
        return float(read + context + patches * s.width * self.spread.out_features + detail + refine)


class Residual(nn.Module):
    """Every position sees its neighbours, channel by channel; then channels are mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(F.gelu(self.around(x)))
        return out
