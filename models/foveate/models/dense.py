"""Every pixel of a picture named: the elastic trunk run for its dense head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.outcome import ClassMaps
from foveate.models.heads.dense import DenseHead
from foveate.models.tokens import Tokens
from foveate.models.vit import ElasticViT, Steps


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a trunk found in each patch, and what it took."""

    patches: Tensor
    """(B, P, W): what the head read of each patch when it left the trunk."""
    tokens: Tensor
    """(B,) int64: tokens that were left at the end, prefix included."""
    after: Tensor | None = None
    """(B, depth) int64: tokens after each block, where that differs from picture to picture."""


def draw(model: ElasticViT, images: Tensor, steps: Steps) -> Canvas:
    """Run normalised images (B, 3, S, S) through the blocks under the steps of a plan.

    Whatever a reducer merges is restored, and what it drops is read as it was when it left.
    """
    head, tokens, counts = dense_of(model), model.embed(images), []
    gone: Tensor | None = None
    for index in range(steps.depth):
        before = tokens
        tokens = model.blocks[index](tokens, steps.reducer, index, steps.heads)
        counts.append(tokens.present)
        left = _left(before, tokens)
        if left is not None:
            read = head.read(before.grid(), index)
            gone = torch.where(left, read, torch.zeros_like(read) if gone is None else gone)
    patches = head.read(tokens.grid(), steps.depth)
    if gone is not None:
        patches = torch.where(shown(tokens).unsqueeze(-1), patches, gone)
    after = torch.stack(counts, 1) if steps.reducer.adaptive else None
    return Canvas(patches, tokens.present, after)


def _left(before: Tokens, now: Tokens) -> Tensor | None:
    """Which patches a block has dropped: (B, P, 1) bool; None where it has dropped none."""
    if now.source is before.source:
        return None
    left = shown(before) & ~shown(now)
    return left.unsqueeze(-1) if left.any() else None


def shown(tokens: Tokens) -> Tensor:
    """Which patches still have a token that stands for them and what is like them: (B, P) bool. The one token
    that EViT makes of all it drops stands for nothing in particular."""
    here = tokens.source >= 0
    if tokens.mixed is not None:
        return here
    return here & (tokens.origin.gather(1, tokens.source.clamp(min=0)) >= 0)


def dense_of(model: ElasticViT) -> DenseHead:
    """The model's dense head, which it must have."""
    if model.dense is None:
        raise ValueError("this model names whole pictures and no pixels")
    return model.dense


def segment(model: ElasticViT, images: Tensor, steps: Steps) -> tuple[Tensor, Canvas]:
    """Scores of each class at each square of 4 x 4 pixels (B, C, S / 4, S / 4), and what they come from."""
    head, canvas = dense_of(model), draw(model, images, steps)
    return head.decode(canvas.patches, head.detail(images)), canvas


Found = tuple[NDArray[np.float32], ClassMaps | None]
"""Each class's share of a picture (C,), and the maps of those that are best somewhere; None where scores
are not finite."""


def class_maps(scores: Tensor) -> Sequence[Found]:
    """Scores (B, C, h, w) picture by picture, without the classes that are nowhere the best."""
    classes, squares = scores.shape[1], scores.shape[2] * scores.shape[3]
    best = scores.argmax(1).flatten(1)
    shares = torch.zeros(len(scores), classes, device=scores.device)
    shares = shares.scatter_add(1, best, torch.full_like(best, 1, dtype=shares.dtype)) / squares
    finite = scores.flatten(1).isfinite().all(1).tolist()
    found: list[Found] = []
    for row, share, fine in zip(scores, shares.cpu().numpy(), finite, strict=True):
        present = np.flatnonzero(share)
        kept = row[torch.from_numpy(present).to(row.device)].half().cpu().numpy()
        found.append((share, ClassMaps(tuple(present.tolist()), kept) if fine else None))
    return found
