"""A head that names every pixel: what the patches say, drawn along the picture's own edges."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.config import ViTConfig

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
    gate: int = 0
    """Features of the gate that tells how deep a picture has to go; 0: there is none."""


class DenseHead(nn.Module):
    """Reads patches after any block, so that a patch may leave the trunk when it likes.

    What is read of each patch, its canvas, is in one space whatever the block ("Dynamic Token Pruning in
    Plain Vision Transformers for Semantic Segmentation", section 3.2, has a head for each stage instead).
    A patch's canvas already names its class; the decoder then shares it out among the patch's pixels.
    """

    def __init__(self, config: ViTConfig, spec: DenseSpec) -> None:
        super().__init__()
        width, fine = spec.width, spec.fine
        self.spec, self.patch_size = spec, config.patch_size
        self.readers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width, eps=config.eps), nn.Linear(config.width, width))
            for _ in range(config.depth)
        )
        self.namer = nn.Linear(width, spec.classes)
        self.context = nn.Sequential(Residual(width), Residual(width))
        self.spread = nn.Linear(width, fine * (config.patch_size // STRIDE) ** 2)
        self.detail = nn.Sequential(
            nn.Conv2d(3, fine // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(fine // 2, fine, 3, stride=2, padding=1),
        )
        self.refine = nn.Sequential(Residual(fine), Residual(fine))
        self.classes = nn.Conv2d(fine, spec.classes, 1)
        self.gate = DepthGate(width, spec.gate, config.depth) if spec.gate else None

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Patches (B, P, D) as they left that block, counted from 1, to their canvas (B, P, W)."""
        out: Tensor = self.readers[max(block, 1) - 1](grid)
        return out

    def classify_patches(self, canvas: Tensor) -> Tensor:
        """What each patch shows for the most part: (B, P, W) to scores (B, P, C)."""
        scores: Tensor = self.namer(F.gelu(canvas))
        return scores

    def decode(self, canvas: Tensor, detail: Tensor) -> Tensor:
        """The scores of each class at each square of pixels: (B, C, S / 4, S / 4).

        canvas: (B, P, W); detail: (B, F, S / 4, S / 4), the head's `detail` of the picture.
        """
        return self.scores(*self.to_maps(canvas, detail))

    def to_maps(self, canvas: Tensor, detail: Tensor) -> tuple[Tensor, Tensor]:
        """What there is to be told of each patch (B, W, side, side), and of each square of pixels
        (B, F, S / 4, S / 4), whatever is then asked of it."""
        side, up = round(canvas.shape[1] ** 0.5), self.patch_size // STRIDE
        canvas = canvas.transpose(1, 2).view(len(canvas), -1, side, side)
        coarse = self.context(F.gelu(canvas))
        fine = self.spread(coarse.flatten(2).transpose(1, 2)).transpose(1, 2)
        fine = F.pixel_shuffle(fine.view(len(canvas), -1, side, side), up) + detail
        return coarse, fine.contiguous(memory_format=torch.channels_last)  # a CPU is a third faster on these

    def scores(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """What is laid out, named: (B, C, S / 4, S / 4)."""
        up = self.patch_size // STRIDE
        named = self.namer(coarse.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores: Tensor = self.classes(F.gelu(self.refine(fine)))
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


class DepthGate(nn.Module):
    """Tells from a picture's first blocks what each depth would be worth to it.

    "Efficient Transformer Encoders for Mask2Former-style Models" (ECO-M2F), section 3.3: the gate there names
    the best depth at one price of a layer; this one foretells the quality at each, so that a price can be
    named with every plan.
    """

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.after = max(1, depth // 4)
        """Blocks before it."""
        self.depths = tuple(dict.fromkeys(max(self.after, depth * part // 6) for part in (2, 3, 4, 5, 6)))
        """Blocks after which a picture may be read, the last among them."""
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, len(self.depths)),
        )

    def forward(self, canvas: Tensor) -> Tensor:
        """The canvas (B, P, W) after those blocks to the quality, about 0 to 1, at each depth: (B, N)."""
        out: Tensor = self.layers(torch.cat([canvas.mean(1), canvas.amax(1)], 1))
        return out

    def choose(self, canvas: Tensor, price: float, most: int) -> Tensor:
        """The depth (B,) int64 worth most to each picture, if all blocks together cost `price` of quality."""
        depths = [depth for depth in self.depths if depth <= most] or [most]
        if len(depths) == 1:
            return torch.full((len(canvas),), depths[0], device=canvas.device)
        worth = self(canvas)[:, : len(depths)].float()
        at = torch.tensor(depths, device=canvas.device)
        return at[(worth - price * at / self.depths[-1]).argmax(1)]


class Residual(nn.Module):
    """Every position sees its neighbours, channel by channel; then channels are mixed."""

    def __init__(self, width: int, reach: int = 1) -> None:
        """reach: how far away the neighbours are."""
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=reach, dilation=reach, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(F.gelu(self.around(x)))
        return out
