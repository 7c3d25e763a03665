"""Glances: which patches of a frame are computed in detail, and how glances and details become one input."""

import torch
from torch import Tensor

from foveate.models.heads.clip import resample
from foveate.models.runners.temporal_reuse import patches_in_share

SHIFT_TIME = 0.25
"""Time, as a share of the clip, over which the weight of a frame's shift falls to 1/e. Chosen on 520 clips of
the training distribution."""


def resized_grids(features: Tensor, side: int) -> Tensor:
    """Features of the patches of square frames (B, n, P, W) on a grid of `side` rows: (B, n, side^2, W)."""
    clips, frames, patches, width = features.shape
    before = round(patches**0.5)
    if before == side:
        return features
    square = features.flatten(0, 1).transpose(1, 2).reshape(clips * frames, width, before, before)
    return resample(square, side).flatten(2).transpose(1, 2).reshape(clips, frames, side * side, width)


def changing_patches(glances: Tensor, salient: Tensor, side: int, share: float) -> Tensor:
    """The patches (B, K, k) of the salient frames that differ most from their mean over the clip.

    glances: (B, n, P, W), features of the glance; salient: (B, K), positions among the n frames; side: rows
    of the grid to which the patches belong; share: of that grid's patches, in 0..1.
    """
    change = (glances - glances.mean(1, keepdim=True)).float().norm(dim=-1, keepdim=True)
    change = change.gather(1, salient[..., None, None].expand(-1, -1, change.shape[2], 1))
    return resized_grids(change, side)[..., 0].topk(patches_in_share(side * side, share), dim=2).indices


def merge_details(glances: Tensor, details: Tensor, computed: Tensor, salient: Tensor, at: Tensor) -> Tensor:
    """Glances (B, n, P, W), with the details (B, K, P, W) of the salient frames in their place.

    Features of a glance and of the plan's trunk differ by several times the motion in a clip, and the head
    reads the difference of a frame from the mean of its clip. Without a correction, the place of the details
    would look like motion. So each patch of all glances is first shifted by the difference of details and
    glances at its position: the mean over the frames that have details there, which weigh exp(-distance in
    time / SHIFT_TIME). A position without details keeps its glances, which are comparable with one another.

    computed: (B, K, P) bool, the patches that have details; salient: (B, K), positions of these frames among
    the n; at: (n,), the time of each frame, from 0 to 1.
    """
    where = salient[..., None, None].expand_as(details)
    known = computed.unsqueeze(-1)
    difference = torch.where(known, details - glances.gather(1, where), 0).float()
    distance = (at.view(1, -1, 1) - at[salient].unsqueeze(1)).abs()  # (B, n, K)
    weight = (-distance / SHIFT_TIME).exp()
    total = weight @ computed.float()  # (B, n, P)
    shift = torch.einsum("bnk,bkpw->bnpw", weight, difference)
    shift = shift / total.unsqueeze(-1).clamp(min=torch.finfo(torch.float32).tiny)
    shifted: Tensor = (glances + shift).to(glances.dtype)
    merged: Tensor = shifted.scatter(1, where, torch.where(known, details, shifted.gather(1, where)))
    return merged
