"""A head that segments the object at given points: the light half of InterFormer, run for every prompt.

Attribute names of modules are parameter names in checkpoints, and fields of PointPromptSpec are keys in their
metadata, so they must not change.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads.dense import STRIDE, DenseSpec, Residual

STEP = 2 * STRIDE
"""Side of a cell, in pixels. Objects are filled on the grid of cells and their edges drawn on a finer one."""
DISC = 1.5
"""Radius of a point's disc, in cells."""
NEAR = 5.0
"""Distance, in cells, over which the map of a point's surroundings falls to 1 / e."""
PADDING = -1.0
"""The label of a row that holds no point."""
_POINT_MAPS = 4
"""Maps of the points alone: discs and surroundings for each of the two labels."""


@dataclass(frozen=True, slots=True)
class PointPromptSpec:
    """The shape of a point prompt head."""

    width: int = 32
    """Features of a cell of STEP x STEP pixels."""
    coarse: int = 64
    """Features of a patch."""
    edges: int = 16
    """Features of a square of STRIDE x STRIDE pixels."""
    looks: int = 4
    """Number of feature groups by which two cells are compared."""


class PointPromptHead(nn.Module):
    """Maps a dense head's features and points to the mask of the object at the points.

    Points become discs ("Reviving Iterative Training with Mask Guidance for Interactive Segmentation",
    section 3.2) and maps of each cell's similarity to the points. Patches have a large receptive field and
    fill large objects; cells follow outlines. The head keeps no state between prompts: the mask is a
    function of the features and of all points.
    """

    def __init__(self, dense: DenseSpec, patch_size: int, spec: PointPromptSpec) -> None:
        """dense: the dense head whose features it takes. patch_size: in pixels, a multiple of STEP.

        Raises ValueError for another patch size.
        """
        super().__init__()
        if patch_size % STEP:
            raise ValueError(f"patches of {patch_size} pixels are not cut into cells of {STEP}")
        self.spec, self.dense, self.patch_size = spec, dense, patch_size
        wide, width, prompt_maps = spec.coarse, spec.width, _POINT_MAPS + 2 * spec.looks
        self.coarse_in = nn.Conv2d(dense.width + prompt_maps, wide, 1)
        self.far = nn.Sequential(*(Residual(wide, reach) for reach in (1, 2, 4)))
        self.join = nn.Conv2d(wide, width, 1)
        self.cells = nn.Conv2d(dense.fine, 2 * width, 1)
        self.near_in = nn.Conv2d(width + prompt_maps, width, 1)
        self.near = nn.Sequential(*(Residual(width) for _ in range(2)))
        self.spread = nn.Conv2d(width, spec.edges, 1)
        self.detail = nn.Conv2d(dense.fine, spec.edges, 1)
        self.object = nn.Conv2d(spec.edges, 1, 1)

    def forward(self, coarse: Tensor, fine: Tensor, points: Tensor) -> Tensor:
        """Logits of the object at the points: (B, 1, S / 4, S / 4).

        coarse (B, W, S / patch, S / patch) and fine (B, F, S / 4, S / 4): the maps of the dense head. points:
        (B, N, 3) float32 with x and y from 0 to 1 of the image, and a label: 1 on the object, 0 off it, or
        PADDING.
        """
        up = self.patch_size // STEP
        cells, keys = self.cells(F.avg_pool2d(fine, 2)).chunk(2, 1)
        discs = point_maps(points, cells.shape[-1]).to(fine.dtype)
        prompts = torch.cat([discs, self._similarity(keys, points)], 1)
        x = self.coarse_in(torch.cat([coarse, F.avg_pool2d(prompts, up)], 1))
        x = _upscale(self.join(F.gelu(self.far(x))), up)
        x = self.near(x + self.near_in(torch.cat([cells, prompts], 1)))
        x = _upscale(self.spread(F.gelu(x)), 2) + self.detail(fine)
        out: Tensor = self.object(F.gelu(x))
        return out

    def _similarity(self, keys: Tensor, points: Tensor) -> Tensor:
        """Cosine similarity of each cell to the most similar point of each label: (B, 2 * looks, h, w).

        -1 where no point has that label.
        """
        batch, _, height, width = keys.shape
        keys = keys.reshape(batch, self.spec.looks, -1, height * width)
        keys = keys * (keys.square().sum(2, keepdim=True) + 1e-6).rsqrt()
        x, y = ((points[..., i] * n).long().clamp(0, n - 1) for i, n in ((0, width), (1, height)))
        at = (y * width + x)[:, None, None].expand(-1, *keys.shape[1:3], -1)
        similarity = keys.gather(3, at).transpose(2, 3) @ keys  # (B, looks, N, h * w)
        maps = [
            similarity.masked_fill((points[..., 2] != label)[:, None, :, None], -1).amax(2)
            for label in (1.0, 0.0)
        ]
        return torch.cat(maps, 1).view(batch, -1, height, width)

    def macs(self, side: int) -> float:
        """Multiply-adds for a grid of side x side patches and one point."""
        d, s = self.dense, self.spec
        prompt_maps, cells = _POINT_MAPS + 2 * s.looks, (self.patch_size // STEP) ** 2
        patch = s.coarse * (d.width + prompt_maps + len(self.far) * (9 + s.coarse) + s.width)
        cell = s.width * (2 * d.fine + s.width + prompt_maps + 1 + len(self.near) * (9 + s.width) + s.edges)
        cell += 4 * s.edges * (d.fine + 1)
        return float(side * side * (patch + cells * cell))


def _upscale(x: Tensor, factor: int) -> Tensor:
    """Bilinear interpolation of maps (B, C, h, w) to `factor` times the size."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def point_maps(points: Tensor, side: int) -> Tensor:
    """Maps of the points (B, N, 3) alone: (B, 4, side, side) float32.

    The first two hold discs around points on and off the object, the other two their surroundings.
    """
    at = (torch.arange(side, device=points.device) + 0.5) / side
    x, y = points[..., 0, None] - at, points[..., 1, None] - at
    distance = (y.square()[..., :, None] + x.square()[..., None, :]).sqrt() * side  # (B, N, h, w), in cells
    other_label = [(points[..., 2] != label)[..., None, None] for label in (1.0, 0.0)]
    nearest = torch.stack([distance.masked_fill(other, torch.inf).amin(1) for other in other_label], 1)
    return torch.cat([(DISC + 0.5 - nearest).clamp(0, 1), (-nearest / NEAR).exp()], 1)
