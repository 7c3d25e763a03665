"""What the patches of cached scenes show, and the visual tokens that are made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.cells import cell_weights
from training.chat_cache import SceneCache
from training.chat_trunk import BACKGROUND, TINT_NUMBERS
from training.multi_scenes import NOTHING, PATCH


@dataclass(frozen=True, slots=True)
class PatchTargets:
    """What each patch shows; -100 marks a patch that takes no part."""

    classes: Tensor
    """(B, P) int64: the class of the object that covers it, or BACKGROUND."""
    tints: Tensor
    """(B, P) int64: the number of the colour of a recoloured object."""


def patch_rows(patches: int) -> int:
    """Rows, and columns, of the patches of a square image. Raises ValueError if they form no square."""
    rows = math.isqrt(patches)
    if rows * rows != patches:
        raise ValueError(f"{patches} patches are not those of a square image")
    return rows


def cell_shares(targets: Tensor, count: int, grid: tuple[int, int] | None, selected: Tensor | None) -> Tensor:
    """What the patches (B, P) of each visual token show, in equal shares: (B, K, count) float32.

    A cell shows BACKGROUND only where all of its patches do.
    """
    shown = F.one_hot(targets.clamp(min=0), count).float() * (targets >= 0)[..., None]
    if selected is not None:
        return shown.gather(1, selected[..., None].expand(-1, -1, count))
    if grid is None:
        raise ValueError("visual tokens are those of a grid or of selected patches")
    rows = patch_rows(targets.shape[1])
    inside = (cell_weights(*grid, rows, rows) > 0).float()
    held = (inside @ shown > 0).float()
    if count > BACKGROUND:
        held[..., BACKGROUND] = (inside @ (targets != BACKGROUND).float()[..., None])[..., 0] == 0
    return held / held.sum(-1, keepdim=True).clamp(min=1)


def patch_targets(scenes: SceneCache, numbers: Sequence[int], side: int) -> PatchTargets:
    """The targets of scenes at a side of their images. Patches that an object covers in part take no part."""
    classes = np.full((len(numbers), (side // PATCH) ** 2), -100)
    tints = np.full_like(classes, -100)
    for row, number in enumerate(numbers):
        owners = scenes.owners[side][number]
        classes[row, owners == NOTHING] = BACKGROUND
        for index, item in enumerate(scenes.graphs[number]):
            classes[row, owners == index] = item.label
            if item.tint is not None:
                tints[row, owners == index] = TINT_NUMBERS[item.tint]
    return PatchTargets(torch.from_numpy(classes), torch.from_numpy(tints))
