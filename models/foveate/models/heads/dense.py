"""A head that classifies every pixel from patch features, sharpened along the image's own edges.

Attribute names of modules are parameter names in checkpoints, so they must not change.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.config import ViTConfig

STRIDE = 4
"""Side of the square of pixels that one score covers."""


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """The shape of a dense head."""

    classes: int
    """Number of classes. Class 0 is the background."""
    width: int = 96
    """Features of a patch in the head."""
    fine: int = 48
    """Features of a square of STRIDE x STRIDE pixels."""
    gate: int = 0
    """Hidden features of the gate that predicts the useful depth of an image; 0: no gate."""


class DenseHead(nn.Module):
    """Reads patches after any block, so a patch may leave the trunk at any block.

    Each block has its own reader, and all readers map to the same feature space ("Dynamic Token Pruning in
    Plain Vision Transformers for Semantic Segmentation", section 3.2, has a head for each stage instead). The
    class of a patch can be predicted from its features alone. The decoder then distributes the features over
    the patch's pixels.
    """

    def __init__(self, config: ViTConfig, spec: DenseSpec) -> None:
        super().__init__()
        width, fine, patch_size = spec.width, spec.fine, config.patch_size
        self.spec, self.patch_size = spec, patch_size
        self.readers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width, eps=config.eps), nn.Linear(config.width, width))
            for _ in range(config.depth)
        )
        self.namer = nn.Linear(width, spec.classes)
        self.context = nn.Sequential(Residual(width), Residual(width))
        self.spread = nn.Linear(width, fine * (patch_size // STRIDE) ** 2)
        self.detail = nn.Sequential(
            nn.Conv2d(3, fine // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(fine // 2, fine, 3, stride=2, padding=1),
        )
        self.refine = nn.Sequential(Residual(fine), Residual(fine))
        self.classes = nn.Conv2d(fine, spec.classes, 1)
        self.gate = DepthGate(width, spec.gate, config.depth) if spec.gate else None

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Map patches (B, P, D) after `block` blocks to patch features (B, P, W)."""
        out: Tensor = self.readers[max(block, 1) - 1](grid)
        return out

    def classify_patches(self, features: Tensor) -> Tensor:
        """Class scores of each patch: patch features (B, P, W) to (B, P, C)."""
        scores: Tensor = self.namer(F.gelu(features))
        return scores

    def decode(self, features: Tensor, detail: Tensor) -> Tensor:
        """Class scores of each square of pixels: (B, C, S / 4, S / 4).

        features: patch features (B, P, W). detail: (B, F, S / 4, S / 4), the head's `detail` of the image.
        """
        return self.scores(*self.to_maps(features, detail))

    def to_maps(self, features: Tensor, detail: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps from which classes or point prompts are answered.

        Takes patch features (B, P, W) and the image's detail (B, F, S / 4, S / 4). Returns coarse features of
        the patches (B, W, side, side) and fine features of the squares of pixels (B, F, S / 4, S / 4).
        """
        side, up = round(features.shape[1] ** 0.5), self.patch_size // STRIDE
        features = features.transpose(1, 2).view(len(features), -1, side, side)
        coarse = self.context(F.gelu(features))
        fine = self.spread(coarse.flatten(2).transpose(1, 2)).transpose(1, 2)
        fine = F.pixel_shuffle(fine.view(len(features), -1, side, side), up) + detail
        return coarse, fine.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU

    def scores(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Class scores (B, C, S / 4, S / 4) of the maps that `to_maps` returns."""
        up = self.patch_size // STRIDE
        patch_scores = self.namer(coarse.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores: Tensor = self.classes(F.gelu(self.refine(fine)))
        return scores + F.interpolate(patch_scores, scale_factor=up, mode="bilinear", align_corners=False)

    def patch_macs(self, classify: bool) -> float:
        """Multiply-adds of reading a patch, and of classifying it if `classify`."""
        width = self.spec.width
        read = self.readers[0][1].in_features * width  # type: ignore[index]
        return float(read + width * self.spec.classes if classify else read)

    def macs(self, side: int) -> float:
        """Multiply-adds for a grid of side x side patches, with one reader."""
        s, patches = self.spec, side * side
        pixels = patches * (self.patch_size // STRIDE) ** 2
        read = patches * self.patch_macs(classify=True)
        context = 2 * patches * s.width * (9 + s.width)
        detail = pixels * (4 * 27 * s.fine // 2 + 9 * s.fine // 2 * s.fine)
        refine = 2 * pixels * s.fine * (9 + s.fine) + pixels * s.fine * s.classes
        return float(read + context + patches * s.width * self.spread.out_features + detail + refine)


class DepthGate(nn.Module):
    """Predicts the quality at each depth from an image's features after the first blocks.

    "Efficient Transformer Encoders for Mask2Former-style Models" (ECO-M2F), section 3.3: the gate there
    predicts the best depth for one fixed cost of a layer. This one predicts the quality at each depth, so
    that each plan can set its own cost.
    """

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        """width: features of a patch. hidden: features of the gate. depth: blocks of the trunk."""
        super().__init__()
        self.after = max(1, depth // 4)
        """Number of blocks before the gate."""
        self.depths = tuple(dict.fromkeys(max(self.after, depth * part // 6) for part in (2, 3, 4, 5, 6)))
        """Depths at which an image may leave the trunk, ascending. The last is the full depth."""
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, len(self.depths)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """The quality at each depth, about 0 to 1: patch features (B, P, W) of the first blocks to (B, N)."""
        out: Tensor = self.layers(torch.cat([features.mean(1), features.amax(1)], 1))
        return out

    def choose(self, features: Tensor, full_cost: float, max_depth: int) -> Tensor:
        """The best depth (B,) int64 for each image, at most `max_depth`.

        The best depth has the largest predicted quality minus cost. full_cost: the cost of all blocks
        together, in units of quality; the cost of a depth is proportional to its number of blocks.
        """
        depths = [depth for depth in self.depths if depth <= max_depth] or [max_depth]
        if len(depths) == 1:
            return torch.full((len(features),), depths[0], device=features.device)
        quality = self(features)[:, : len(depths)].float()
        at = torch.tensor(depths, device=features.device)
        return at[(quality - full_cost * at / self.depths[-1]).argmax(1)]


class Residual(nn.Module):
    """A residual block: a depth-wise 3 x 3 convolution, GELU, and a 1 x 1 convolution."""

    def __init__(self, width: int, reach: int = 1) -> None:
        """width: number of channels. reach: the dilation of the 3 x 3 convolution."""
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=reach, dilation=reach, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to maps of the same shape."""
        out: Tensor = x + self.mix(F.gelu(self.around(x)))
        return out
