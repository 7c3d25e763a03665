"""Semantic segmentation: the elastic trunk run for its dense head, and scores turned into class maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

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
    """The features of every patch at the end of the trunk, and the compute that they took."""

    patches: Tensor
    """(B, P, W): the head's reading of each patch after the block in which it left the trunk."""
    tokens: Tensor
    """(B,) int64: tokens at the end, prefix included."""
    after: Tensor | None = None
    """(B, depth) int64: tokens after each block, where the counts differ between images."""
    depths: Tensor | None = None
    """(B,) int64: blocks that each image went through, where the depths differ."""
    logits: Tensor | None = None
    """(B, C): from the trunk's own classifier, where there is one and all blocks ran."""
    maps: tuple[Tensor, Tensor] | None = None
    """The head's coarse and fine feature maps, from which scores and click features are computed."""


class PatchReader(Protocol):
    """A head that projects patches after any block into one common space."""

    def read(self, grid: Tensor, block: int) -> Tensor:
        """Patches (B, P, D) after a block, counted from 1, to features (B, P, W)."""
        ...


@dataclass(frozen=True, slots=True)
class TrunkState:
    """A batch between two blocks."""

    tokens: Tokens
    dropped: Tensor | None = None
    """(B, P, W): features of the patches that were dropped so far; None where none was."""
    counts: tuple[Tensor, ...] = ()
    """(B,) tokens after each block so far."""

    def select(self, rows: Tensor) -> "TrunkState":
        """The state of some rows of the batch."""
        dropped = None if self.dropped is None else self.dropped[rows]
        return TrunkState(self.tokens.rows(rows), dropped, tuple(count[rows] for count in self.counts))


class ImageSegmentation(NamedTuple):
    """The classes of one segmented image."""

    shares: NDArray[np.float32]
    """(C,): the share of the image that each class covers."""
    maps: ClassMaps | None
    """The maps of the classes that are the best somewhere; None where scores are not finite."""


def encode(
    model: ElasticViT, images: Tensor, resolved: ResolvedPlan, full_cost: float | None = None
) -> PatchFeatures:
    """Run normalised images (B, 3, S, S) through the blocks of a plan, for the dense head.

    full_cost: the quality that all blocks together have to be worth, in 0..1; the head's gate then
    chooses the depth of each image. None: every image goes through all of the plan's blocks.
    """
    tokens = model.embed(images)
    if full_cost is None:
        return encode_tokens(model, dense_of(model), tokens, resolved)
    return _encode_gated(model, tokens, resolved, full_cost)


def encode_tokens(
    model: ElasticViT, head: PatchReader, tokens: Tokens, resolved: ResolvedPlan
) -> PatchFeatures:
    """Run embedded tokens through the blocks.

    Merged patches are restored. Dropped patches have the features they had when they were dropped. The
    features of patches that never entered the trunk are undefined.
    """
    state = _run_blocks(model, head, TrunkState(tokens), resolved, 0, resolved.depth)
    after = torch.stack(state.counts, 1) if resolved.reducer.adaptive else None
    classifies = resolved.depth == model.config.depth and model.config.classes
    logits = model.classify(state.tokens) if classifies else None
    patches = _features(head, state, resolved.depth)
    return PatchFeatures(patches, state.tokens.present, after, logits=logits)


def _encode_gated(
    model: ElasticViT, tokens: Tokens, resolved: ResolvedPlan, full_cost: float
) -> PatchFeatures:
    """As `encode_tokens`, with a depth per image. Images of equal depth run as one batch."""
    head = dense_of(model)
    if head.gate is None:
        raise ValueError("the model's dense head has no gate")
    first = min(head.gate.after, resolved.depth)
    state = _run_blocks(model, head, TrunkState(tokens), resolved, 0, first)
    depths = head.gate.choose(_features(head, state, first), full_cost, resolved.depth)
    rows, patches, present = [], [], []
    for depth in sorted(set(depths.tolist())):
        chosen = (depths == depth).nonzero()[:, 0]
        last = _run_blocks(model, head, state.select(chosen), resolved, first, depth)
        rows.append(chosen)
        patches.append(_features(head, last, depth))
        present.append(last.tokens.present)
    order = torch.cat(rows).argsort()
    return PatchFeatures(torch.cat(patches)[order], torch.cat(present)[order], depths=depths)


def _run_blocks(
    model: ElasticViT, head: PatchReader, state: TrunkState, resolved: ResolvedPlan, start: int, stop: int
) -> TrunkState:
    """The state after the blocks from `start` up to `stop`, counted from 0."""
    tokens, dropped, counts = state.tokens, state.dropped, [*state.counts]
    for index in range(start, stop):
        before = tokens
        tokens = model.blocks[index](tokens, resolved.reducer, index, resolved.heads)
        counts.append(tokens.present)
        newly = _newly_dropped(before, tokens)
        if newly is not None:
            features = _read(head, before, index)
            dropped = torch.where(newly, features, torch.zeros_like(features) if dropped is None else dropped)
    return TrunkState(tokens, dropped, tuple(counts))


def _features(head: PatchReader, state: TrunkState, depth: int) -> Tensor:
    """The features (B, P, W) of all patches after `depth` blocks, those of dropped ones included."""
    features = _read(head, state.tokens, depth)
    if state.dropped is None:
        return features
    return torch.where(represented(state.tokens).unsqueeze(-1), features, state.dropped)


def _read(head: PatchReader, tokens: Tokens, block: int) -> Tensor:
    """The features (B, P, W) of patches after a block.

    The head reads tokens, of which there are fewer than patches, and its readings are copied to the patches.
    Where patches are mixtures of tokens (`tokens.mixed`) the head reads the mixtures.
    """
    if tokens.mixed is not None:
        return head.read(tokens.grid(), block)
    return tokens.restored(head.read(tokens.x, block))


def _newly_dropped(before: Tokens, now: Tokens) -> Tensor | None:
    """The patches that a block has dropped: (B, P, 1) bool; None where it dropped none."""
    if now.source is before.source:
        return None
    newly = represented(before) & ~represented(now)
    return newly.unsqueeze(-1) if newly.any() else None


def represented(tokens: Tokens) -> Tensor:
    """The patches that a similar token still represents: (B, P) bool.

    The one token into which EViT fuses all dropped patches represents none of them.
    """
    present = tokens.source >= 0
    if tokens.mixed is not None:
        return present
    return present & (tokens.origin.gather(1, tokens.source.clamp(min=0)) >= 0)


def dense_of(model: ElasticViT) -> DenseHead:
    """The model's dense head. Raises ValueError for a model without one."""
    if model.dense is None:
        raise ValueError("the model has no dense head: it classifies images and does not segment them")
    return model.dense


def segment(
    model: ElasticViT, images: Tensor, resolved: ResolvedPlan, full_cost: float | None = None
) -> tuple[Tensor, PatchFeatures]:
    """Class scores of squares of 4 x 4 pixels (B, C, S / 4, S / 4), and the features they come from.

    images: (B, 3, S, S), normalised; full_cost: as for `encode`.
    """
    head, features = dense_of(model), encode(model, images, resolved, full_cost)
    # A CPU is a third faster with channels last.
    coarse, fine = head.to_maps(
        features.patches, head.detail(images.contiguous(memory_format=torch.channels_last))
    )
    return head.scores(coarse, fine), replace(features, maps=(coarse, fine))


def class_maps(scores: Tensor) -> Sequence[ImageSegmentation]:
    """Scores (B, C, h, w) image by image, without the classes that are the best nowhere."""
    classes, squares = scores.shape[1], scores.shape[2] * scores.shape[3]
    highest, best = scores.max(1)  # argmax alone takes three times as long on a CPU
    best = best.flatten(1)
    shares = torch.zeros(len(scores), classes, device=scores.device)
    shares = shares.scatter_add(1, best, torch.full_like(best, 1, dtype=shares.dtype)) / squares
    finite = highest.flatten(1).isfinite().all(1).tolist()  # max returns NaN where any score is NaN
    images: list[ImageSegmentation] = []
    for row, share, is_finite in zip(scores, shares.cpu().numpy(), finite, strict=True):
        present = np.flatnonzero(share)
        kept = row[torch.from_numpy(present).to(row.device)].half().cpu().numpy()
        maps = ClassMaps(tuple(present.tolist()), kept) if is_finite else None
        images.append(ImageSegmentation(share, maps))
    return images
