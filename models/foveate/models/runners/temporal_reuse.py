"""Temporal reuse: a patch of a frame is computed again only where it differs from its last computed state.

As in "Eventful Transformers: Leveraging Temporal Redundancy in Vision Transformers" (section 4.1), a patch is
compared with the state in which it was last computed, so that slow changes add up. Unlike there, the computed
patches attend to one another alone, and to no stored state of the other patches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.tokens import gather_tokens

CELL = 4
"""Side in pixels of the squares whose mean colours are compared. Means suppress pixel noise."""
NOISE = 0.02
"""A mean change of up to this much counts as noise: the patch keeps its state. Pixels are about in -1..1."""
PatchEncoder = Callable[[Tensor, Tensor | None], Tensor]
"""Images (N, 3, S, S), and which of their patches (N, K) enter the trunk (None: all), to the features of all
patches (N, P, W). The features of patches that did not enter are undefined."""


@dataclass(frozen=True, slots=True)
class ReuseState:
    """The last computed state of each patch of a batch of clips."""

    colours: Tensor
    """(B, P, F): mean colours of the patch's cells."""
    features: Tensor
    """(B, P, W): the patch's features."""

    def select(self, rows: Tensor) -> "ReuseState":
        """The state of some of the clips."""
        return ReuseState(self.colours[rows], self.features[rows])


def patches_in_share(patches: int, share: float) -> int:
    """The number of patches in a share of them, rounded up."""
    return min(patches, math.ceil(share * patches))


def encode_first(encoder: PatchEncoder, images: Tensor, patch: int) -> ReuseState:
    """The state after the first frame (B, 3, S, S), of which every patch is computed."""
    return ReuseState(cell_colours(images, patch), encoder(images, None))


def encode_next(
    encoder: PatchEncoder,
    frames: Tensor,
    share: float,
    patch: int,
    state: ReuseState,
    weight: Tensor | None = None,
) -> tuple[Tensor, ReuseState]:
    """The features of the next frames, (B, T, P, W), and the state after them.

    frames: (B, T, 3, S, S); share: the share of each frame's patches that is computed, those that changed
    most; patch: side of a patch in pixels; weight: (B, P), a factor on each patch's change.
    """
    clips, count = frames.shape[:2]
    colours = cell_colours(frames.flatten(0, 1), patch)
    colours = colours.view(clips, count, *colours.shape[1:])
    kept, changed, last = _choose(colours, state.colours, patches_in_share(colours.shape[2], share), weight)
    computed = encoder(frames.flatten(0, 1), kept.flatten(0, 1))
    computed = computed.view(clips, count, *computed.shape[1:])
    features, by_frame = state.features, []
    for number in range(count):
        where = kept[:, number].unsqueeze(-1).expand(-1, -1, features.shape[2])
        fresh = gather_tokens(computed[:, number], kept[:, number])
        features = features.scatter(1, where, torch.where(changed[number], fresh, features.gather(1, where)))
        by_frame.append(features)
    return torch.stack(by_frame, 1), ReuseState(last, features)


def _choose(
    colours: Tensor, last: Tensor, count: int, weight: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The `count` patches of each frame that changed most.

    colours: (B, T, P, F) of the frames; last: (B, P, F) of the last computed state. Returns the patches
    (B, T, count), whether each of them changed by more than noise (T tensors (B, count, 1)), and the colours
    of the last computed state after these frames.
    """
    kept, changes = [], []
    for number in range(colours.shape[1]):
        change = (colours[:, number] - last).abs().mean(2)
        chosen = (change if weight is None else change * weight).topk(count, dim=1).indices
        changed = change.gather(1, chosen).unsqueeze(-1) > NOISE
        where = chosen.unsqueeze(-1).expand(-1, -1, last.shape[2])
        new = torch.where(changed, colours[:, number].gather(1, where), last.gather(1, where))
        last = last.scatter(1, where, new)
        kept.append(chosen)
        changes.append(changed)
    return torch.stack(kept, 1), changes, last


def cell_colours(images: Tensor, patch: int) -> Tensor:
    """Mean colours of the cells of each patch: (N, 3, S, S) to (N, P, 3 * (patch / CELL)^2)."""
    return F.unfold(F.avg_pool2d(images.float(), CELL), patch // CELL, stride=patch // CELL).transpose(1, 2)
