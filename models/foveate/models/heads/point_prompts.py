"""A head that outlines what is clicked: the light half of InterFormer's split, run anew for every click."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.heads.dense import STRIDE, DenseSpec, Residual

STEP = 2 * STRIDE
"""Pixels of a cell, in each direction. Objects are filled on this grid; edges are drawn on a finer one."""
DISC = 1.5
"""Radius of a click, in cells."""
NEAR = 5.0
"""Cells over which what is near a click fades."""
PADDING = -1.0
"""The label of a point that is none."""
_MAPS = 4
"""Of clicks alone: each sign's discs, and what is near them."""


@dataclass(frozen=True, slots=True)
class PointPromptSpec:
    """The shape of a click head."""

    width: int = 32
    """Features of a cell of STEP x STEP pixels."""
    coarse: int = 64
    """Features of a patch."""
    edges: int = 16
    """Features of a square of STRIDE x STRIDE pixels."""
    looks: int = 4
    """Ways in which two places are compared."""


class PointPromptHead(nn.Module):
    """From a dense head's features and points to the object that was clicked.

    Points become discs ("Reviving Iterative Training with Mask Guidance for Interactive Segmentation",
    section 3.2) and maps of how like a clicked place each place is. Patches see far and fill large
    objects; cells follow their outlines. Nothing is remembered from click to click: the answer is a
    function of the features and of all points.
    """

    def __init__(self, dense: DenseSpec, patch_size: int, spec: PointPromptSpec) -> None:
        super().__init__()
        if patch_size % STEP:
            raise ValueError(f"patches of {patch_size} pixels are not cut into cells of {STEP}")
        self.spec, self.dense, self.patch_size = spec, dense, patch_size
        wide, width, told = spec.coarse, spec.width, _MAPS + 2 * spec.looks
        self.coarse_in = nn.Conv2d(dense.width + told, wide, 1)
        self.far = nn.Sequential(*(Residual(wide, reach) for reach in (1, 2, 4)))
        self.join = nn.Conv2d(wide, width, 1)
        self.cells = nn.Conv2d(dense.fine, 2 * width, 1)
        self.near_in = nn.Conv2d(width + told, width, 1)
        self.near = nn.Sequential(*(Residual(width) for _ in range(2)))
        self.spread = nn.Conv2d(width, spec.edges, 1)
        self.detail = nn.Conv2d(dense.fine, spec.edges, 1)
        self.object = nn.Conv2d(spec.edges, 1, 1)

    def forward(self, coarse: Tensor, fine: Tensor, points: Tensor) -> Tensor:
        """Logits of "the object clicked" (B, 1, S / 4, S / 4).

        coarse (B, W, S / patch, S / patch), fine (B, F, S / 4, S / 4): what the dense head has laid out;
        points (B, N, 3) float32: x and y in 0..1 of the picture, and 1 on the object, 0 off it, PADDING.
        """
        up = self.patch_size // STEP
        cells, keys = self.cells(F.avg_pool2d(fine, 2)).chunk(2, 1)
        told = torch.cat([point_maps(points, cells.shape[-1]).to(fine.dtype), self._alike(keys, points)], 1)
        x = self.coarse_in(torch.cat([coarse, F.avg_pool2d(told, up)], 1))
        x = _scaled(self.join(F.gelu(self.far(x))), up)
        x = self.near(x + self.near_in(torch.cat([cells, told], 1)))
        x = _scaled(self.spread(F.gelu(x)), 2) + self.detail(fine)
        out: Tensor = self.object(F.gelu(x))
        return out

    def _alike(self, keys: Tensor, points: Tensor) -> Tensor:
        """How like the likest click of each sign each cell is, by cosine: (B, 2 * looks, h, w); -1 where no
        click has that sign."""
        batch, _, height, width = keys.shape
        keys = keys.reshape(batch, self.spec.looks, -1, height * width)
        keys = keys * (keys.square().sum(2, keepdim=True) + 1e-6).rsqrt()
        x, y = ((points[..., i] * n).long().clamp(0, n - 1) for i, n in ((0, width), (1, height)))
        where = (y * width + x)[:, None, None].expand(-1, *keys.shape[1:3], -1)
        like = keys.gather(3, where).transpose(2, 3) @ keys  # (B, looks, N, h * w)
        signs = [
            like.masked_fill((points[..., 2] != sign)[:, None, :, None], -1).amax(2) for sign in (1.0, 0.0)
        ]
        return torch.cat(signs, 1).view(batch, -1, height, width)

    def macs(self, side: int) -> float:
        """Multiply-adds for a grid of side x side patches and one point."""
        d, s = self.dense, self.spec
        told, cells = _MAPS + 2 * s.looks, (self.patch_size // STEP) ** 2
        patch = s.coarse * (d.width + told + len(self.far) * (9 + s.coarse) + s.width)
        cell = s.width * (2 * d.fine + s.width + told + 1 + len(self.near) * (9 + s.width) + s.edges)
        cell += 4 * s.edges * (d.fine + 1)
        return float(side * side * (patch + cells * cell))


def _scaled(x: Tensor, by: int) -> Tensor:
    return F.interpolate(x, scale_factor=by, mode="bilinear", align_corners=False)


def point_maps(points: Tensor, side: int) -> Tensor:
    """Discs of the clicks on the object and off it, then what is near these: (B, 4, side, side) float32."""
    at = (torch.arange(side, device=points.device) + 0.5) / side
    x, y = points[..., 0, None] - at, points[..., 1, None] - at
    apart = (y.square()[..., :, None] + x.square()[..., None, :]).sqrt() * side  # (B, N, h, w), in cells
    signs = [(points[..., 2] != sign)[..., None, None] for sign in (1.0, 0.0)]
    nearest = torch.stack([apart.masked_fill(other, torch.inf).amin(1) for other in signs], 1)
    return torch.cat([(DISC + 0.5 - nearest).clamp(0, 1), (-nearest / NEAR).exp()], 1)
