"""Every pixel of a picture named: the elastic trunk run for its dense head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.outcome import ClassMaps
from foveate.models.heads.dense import DenseHead
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """What a trunk found in each patch, and what it took."""

    patches: Tensor
    """(B, P, W): what the head read of each patch when it left the trunk."""
    tokens: Tensor
    """(B,) int64: tokens that were left at the end, prefix included."""
    after: Tensor | None = None
    """(B, depth) int64: tokens after each block, where that differs from picture to picture."""
    depths: Tensor | None = None
    """(B,) int64: blocks each picture went through, where these differ."""
    logits: Tensor | None = None
    """(B, C): of the trunk's own classifier, where there is one and pictures went through all blocks."""
    laid: tuple[Tensor, Tensor] | None = None
    """What the head laid out before it named anything, coarse and fine, where it has got so far."""


class Reader(Protocol):
    """A head that reads patches after any block, each in one space: its canvas."""

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Patches (B, P, D) as they left that block, counted from 1, to their canvas (B, P, W)."""
        ...


def encode(
    model: ElasticViT, images: Tensor, steps: ResolvedPlan, price: float | None = None
) -> PatchFeatures:
    """Run normalised images (B, 3, S, S) through the blocks under the steps of a plan, for the dense head.

    price: what all blocks together cost in quality; the head's gate then tells how deep each picture goes.
    """
    tokens = model.embed(images)
    if price is None:
        return read(model, dense_of(model), tokens, steps)
    return _gated(model, tokens, steps, price)


def read(model: ElasticViT, head: Reader, tokens: Tokens, steps: ResolvedPlan) -> PatchFeatures:
    """Run embedded tokens through the blocks. Whatever a reducer merges is restored, and what it drops is
    read as it was when it left; what is returned for patches that never entered means nothing."""
    way = _further(model, head, TrunkState(tokens), steps, 0, steps.depth)
    after = torch.stack(way.counts, 1) if steps.reducer.adaptive else None
    whole = steps.depth == model.config.depth and model.config.classes
    logits = model.classify(way.tokens) if whole else None
    return PatchFeatures(_patches(head, way, steps.depth), way.tokens.present, after, logits=logits)


def _gated(model: ElasticViT, tokens: Tokens, steps: ResolvedPlan, price: float) -> PatchFeatures:
    """Those that go equally deep go on together."""
    head = dense_of(model)
    if head.gate is None:
        raise ValueError("this model has no gate")
    first = min(head.gate.after, steps.depth)
    way = _further(model, head, TrunkState(tokens), steps, 0, first)
    depths = head.gate.choose(_patches(head, way, first), price, steps.depth)
    rows, patches, present = [], [], []
    for depth in sorted(set(depths.tolist())):
        chosen = (depths == depth).nonzero()[:, 0]
        on = _further(model, head, way.rows(chosen), steps, first, depth)
        rows.append(chosen)
        patches.append(_patches(head, on, depth))
        present.append(on.tokens.present)
    order = torch.cat(rows).argsort()
    return PatchFeatures(torch.cat(patches)[order], torch.cat(present)[order], depths=depths)


@dataclass(frozen=True, slots=True)
class TrunkState:
    """How far pictures have come."""

    tokens: Tokens
    gone: Tensor | None = None
    """(B, P, W): what was read of each patch that has been dropped; None where none was."""
    counts: tuple[Tensor, ...] = ()
    """(B,) tokens after each block so far."""

    def rows(self, index: Tensor) -> "TrunkState":
        gone = None if self.gone is None else self.gone[index]
        return TrunkState(self.tokens.rows(index), gone, tuple(count[index] for count in self.counts))


def _further(
    model: ElasticViT, head: Reader, way: TrunkState, steps: ResolvedPlan, start: int, stop: int
) -> TrunkState:
    """The blocks from `start` to `stop`."""
    tokens, gone, counts = way.tokens, way.gone, [*way.counts]
    for index in range(start, stop):
        before = tokens
        tokens = model.blocks[index](tokens, steps.reducer, index, steps.heads)
        counts.append(tokens.present)
        left = _left(before, tokens)
        if left is not None:
            canvas = _seen(head, before, index)
            gone = torch.where(left, canvas, torch.zeros_like(canvas) if gone is None else gone)
    return TrunkState(tokens, gone, tuple(counts))


def _patches(head: Reader, way: TrunkState, depth: int) -> Tensor:
    """The canvas (B, P, W) of pictures that have come through so many blocks."""
    patches = _seen(head, way.tokens, depth)
    if way.gone is None:
        return patches
    return torch.where(shown(way.tokens).unsqueeze(-1), patches, way.gone)


def _seen(head: Reader, tokens: Tokens, block: int) -> Tensor:
    """The canvas (B, P, W) of patches as they left a block. Tokens are fewer than patches, and read first
    where each patch shows one of them as it is; a mixture of tokens is read as a whole."""
    if tokens.mixed is not None:
        return head.read(tokens.grid(), block)
    return tokens.restored(head.read(tokens.x, block))


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


def segment(
    model: ElasticViT, images: Tensor, steps: ResolvedPlan, price: float | None = None
) -> tuple[Tensor, PatchFeatures]:
    """Scores of each class at each square of 4 x 4 pixels (B, C, S / 4, S / 4), and what they come from."""
    head, canvas = dense_of(model), encode(model, images, steps, price)
    # A CPU is a third faster with channels last.
    coarse, fine = head.to_maps(
        canvas.patches, head.detail(images.contiguous(memory_format=torch.channels_last))
    )
    return head.scores(coarse, fine), replace(canvas, laid=(coarse, fine))


Found = tuple[NDArray[np.float32], ClassMaps | None]
"""Each class's share of a picture (C,), and the maps of those that are best somewhere; None where scores
are not finite."""


def class_maps(scores: Tensor) -> Sequence[Found]:
    """Scores (B, C, h, w) picture by picture, without the classes that are nowhere the best."""
    classes, squares = scores.shape[1], scores.shape[2] * scores.shape[3]
    most, best = scores.max(1)  # argmax alone takes three times as long on a CPU
    best = best.flatten(1)
    shares = torch.zeros(len(scores), classes, device=scores.device)
    shares = shares.scatter_add(1, best, torch.full_like(best, 1, dtype=shares.dtype)) / squares
    finite = most.flatten(1).isfinite().all(1).tolist()  # no number at all is the largest of any
    found: list[Found] = []
    for row, share, fine in zip(scores, shares.cpu().numpy(), finite, strict=True):
        present = np.flatnonzero(share)
        kept = row[torch.from_numpy(present).to(row.device)].half().cpu().numpy()
        found.append((share, ClassMaps(tuple(present.tolist()), kept) if fine else None))
    return found
