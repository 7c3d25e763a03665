"""Frames of a clip that share what did not change: a patch is computed anew where it differs from what it was
when it was last computed.

As in "Eventful Transformers: Leveraging Temporal Redundancy in Vision Transformers" (section 4.1), a patch is
compared with its last computed state, so that slow change adds up. Unlike there the patches that are computed
see one another alone, and none of what is kept of the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.tokens import gather_tokens

CELL = 4
"""A patch is compared by the mean colours of squares of so many pixels: noise is no change."""
NOISE = 0.02
"""What has changed by no more, of the range of -1 to 1 or so that a model sees, stays as it was."""
Read = Callable[[Tensor, Tensor | None], Tensor]
"""Images (N, 3, S, S) and which of their patches (N, K) enter the trunk, None for all, to the canvas of all
patches (N, P, W), which means nothing for those that did not enter."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of each patch from when it was last computed."""

    cells: Tensor
    """(B, P, F) its colours."""
    canvas: Tensor
    """(B, P, W)."""

    def rows(self, index: Tensor) -> "Memory":
        """Only some of the clips."""
        return Memory(self.cells[index], self.canvas[index])


def share_of(patches: int, share: float) -> int:
    """How many patches a share of them is."""
    return min(patches, math.ceil(share * patches))


def first_look(read: Read, images: Tensor, patch: int) -> Memory:
    """A frame (B, 3, S, S) of which nothing is known yet: every patch is computed."""
    return Memory(cells_of(images, patch), read(images, None))


def look_again(
    read: Read, frames: Tensor, share: float, patch: int, memory: Memory, weight: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """The canvas of each of the next frames, (B, T, P, W), and what is known after them.

    frames: (B, T, 3, S, S); share: of each frame's patches, those that changed most are computed; weight: how
    much a change counts at each patch (B, P).
    """
    clips, count = frames.shape[:2]
    cells = cells_of(frames.flatten(0, 1), patch)
    cells = cells.view(clips, count, *cells.shape[1:])
    computed = share_of(cells.shape[2], share)
    held, chosen, real = memory.cells, [], []
    for number in range(count):
        change = (cells[:, number] - held).abs().mean(2)
        most = (change if weight is None else change * weight).topk(computed, dim=1).indices
        changed = change.gather(1, most).unsqueeze(-1) > NOISE
        where = most.unsqueeze(-1).expand(-1, -1, held.shape[2])
        new = torch.where(changed, cells[:, number].gather(1, where), held.gather(1, where))
        held = held.scatter(1, where, new)
        chosen.append(most)
        real.append(changed)
    kept = torch.stack(chosen, 1)
    new = read(frames.flatten(0, 1), kept.flatten(0, 1))
    new = new.view(clips, count, *new.shape[1:])
    canvas, found = memory.canvas, []
    for number in range(count):
        where = kept[:, number].unsqueeze(-1).expand(-1, -1, canvas.shape[2])
        fresh = gather_tokens(new[:, number], kept[:, number])
        canvas = canvas.scatter(1, where, torch.where(real[number], fresh, canvas.gather(1, where)))
        found.append(canvas)
    return torch.stack(found, 1), Memory(held, canvas)


def cells_of(images: Tensor, patch: int) -> Tensor:
    """Mean colours within each patch: (N, 3, S, S) to (N, P, 3 * (patch / CELL)^2)."""
    return F.unfold(F.avg_pool2d(images.float(), CELL), patch // CELL, stride=patch // CELL).transpose(1, 2)
