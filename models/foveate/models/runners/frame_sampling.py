"""Classification of clips: which frames are computed, at which detail, and when a clip exits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.core.plan import sampled_frames
from foveate.models.exits import ExitRule
from foveate.models.heads.clip import ClipHead
from foveate.models.layers.tokens import Assignment
from foveate.models.reduction.none import Identity
from foveate.models.runners.dense import PatchReader, encode_tokens
from foveate.models.runners.frame_glance import changing_patches, merge_details, resized_grids
from foveate.models.runners.temporal_reuse import ReuseState, encode_first, encode_next
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

FrameLoader = Callable[[Tensor, Tensor, int], Tensor]
"""Clip numbers (N,), frame numbers (N,), both int64, and a side to normalised images (N, 3, side, side)."""


@dataclass(frozen=True, slots=True)
class Glance:
    """The frames that are computed in detail after a cheap glance at all frames."""

    frames: int
    share: float
    """Share of their patches that is computed in detail, in 0..1."""


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """A plan resolved for a model of clips."""

    frames: int
    """Frames of the clip that are used."""
    image_size: int
    """Side of the frames in pixels."""
    resolved: ResolvedPlan
    """What happens in the trunk."""
    glance: Glance | None = None
    """None: all frames are computed in detail."""
    reuse: float = 1.0
    """Share of a frame's patches that is computed again."""
    exit_rule: ExitRule | None = None
    """Decides from the logits so far whether a clip exits; None: never."""


@dataclass(frozen=True, slots=True)
class FrameCost:
    """The compute of one clip, in frames."""

    full_frames: int
    """Frames that went through the plan's trunk with all of their patches."""
    partial_frames: int
    """Frames that went through it with some of their patches."""
    glances: int
    """Frames that were glanced at."""
    head_runs: tuple[int, ...]
    """Frames that the head read, for each of its runs."""


@dataclass(frozen=True, slots=True)
class VideoResult:
    """The answer for one clip."""

    frames: tuple[int, ...]
    """The frames that were used, in order of time."""
    logits: Tensor
    """(n, C): class scores after each of these frames; the last row is the answer."""
    cost: FrameCost


@dataclass(frozen=True, slots=True)
class ClipState:
    """The clips that have not exited, and their features so far."""

    rows: Tensor
    """(B,): positions of these clips in the batch."""
    frames: tuple[int, ...]
    """The frames so far, in the order in which they were computed."""
    regions: Tensor
    """(B, n, R, G, G): pooled features of these frames."""
    reuse: ReuseState | None = None

    def select(self, index: Tensor) -> "ClipState":
        """The state of some of the clips."""
        reuse = self.reuse and self.reuse.select(index)
        return ClipState(self.rows[index], self.frames, self.regions[index], reuse)


def coarse_to_fine(frames: list[int]) -> list[list[int]]:
    """Frames in stages: a quarter of them spread over the clip, those halfway between, then all others."""
    parts = [frames[1::4] or frames[:1], frames[3::4], frames[::2]]
    used: set[int] = set()
    stages = []
    for part in parts:
        new = [frame for frame in part if frame not in used]
        used.update(new)
        stages += [new] if new else []
    return stages


class VideoExecutor:
    """Runs batches of clips through a model's trunk and clip head."""

    def __init__(self, model: ElasticViT, load_frames: FrameLoader, total: int) -> None:
        """total: frames of each clip that `load_frames` can load."""
        self.model, self.head, self.load_frames, self.total = model, clip_of(model), load_frames, total
        self.device = model.patch_embed.proj.weight.device

    def __call__(self, clips: int, plan: VideoPlan) -> list[VideoResult]:
        """One result per clip, in order. clips: their number."""
        results: dict[int, VideoResult] = {}
        frames = sampled_frames(self.total, plan.frames)
        if plan.glance is not None:
            self._run_with_glance(clips, frames, plan, plan.glance, results)
        else:
            self._run_in_stages(clips, frames, plan, results)
        return [results[row] for row in range(clips)]

    def _run_in_stages(
        self, clips: int, frames: list[int], plan: VideoPlan, results: dict[int, VideoResult]
    ) -> None:
        """Compute frames stage by stage. After each stage, the clips exit for which the exit rule says so."""
        stages, runs = coarse_to_fine(frames) if plan.exit_rule else [frames], list[int]()
        state = self.start(clips)
        for stage in stages:
            state = self.add_frames(state, stage, plan)
            leaves = torch.ones_like(state.rows, dtype=torch.bool)
            if plan.exit_rule is not None and stage is not stages[-1]:
                logits, _ = self.predict(state)
                runs.append(len(state.frames))
                leaves = plan.exit_rule(list(logits.unbind(1)))
            partial = len(state.frames) - 1 if plan.reuse < 1 else 0
            cost = FrameCost(len(state.frames) - partial, partial, 0, (*runs, len(state.frames)))
            self._finish(state.select(leaves.nonzero()[:, 0]), cost, results)
            state = state.select((~leaves).nonzero()[:, 0])
            if not len(state.rows):
                return

    def start(self, clips: int) -> ClipState:
        """The state of this many clips before any frame is computed."""
        return ClipState(torch.arange(clips, device=self.device), (), torch.empty(0))

    def add_frames(self, state: ClipState, stage: list[int], plan: VideoPlan) -> ClipState:
        """The state of the same clips with more of their frames."""
        images = self._images(state.rows, self._repeat(stage, len(state.rows)), plan.image_size)
        if plan.reuse >= 1:
            features, reuse = self._features(images.flatten(0, 1), plan.resolved, None), state.reuse
        else:
            features, reuse = self._reuse(images, plan, state.reuse)
        regions = by_clip(self.head.pooled(features), len(state.rows))
        if state.frames:
            regions = torch.cat([state.regions, regions], 1)
        return ClipState(state.rows, (*state.frames, *stage), regions, reuse)

    def _reuse(self, images: Tensor, plan: VideoPlan, reuse: ReuseState | None) -> tuple[Tensor, ReuseState]:
        """Frames (B, n, 3, S, S) to features (B * n, P, R), where patches that changed little are reused."""
        patch, by_frame = self.model.config.patch_size, []

        def encoder(images: Tensor, kept: Tensor | None) -> Tensor:
            return self._features(images, plan.resolved, kept)

        if reuse is None:
            reuse = encode_first(encoder, images[:, 0], patch)
            by_frame, images = [reuse.features.unsqueeze(1)], images[:, 1:]
        if images.shape[1]:
            more, reuse = encode_next(encoder, images, plan.reuse, patch, reuse)
            by_frame.append(more)
        return torch.cat(by_frame, 1).flatten(0, 1), reuse

    def _run_with_glance(
        self, clips: int, frames: list[int], plan: VideoPlan, glance: Glance, results: dict[int, VideoResult]
    ) -> None:
        """A cheap glance at all frames chooses the frames, and parts of them, to compute in detail.

        "AVGN: Audio-Visual Glance Network for Efficient Video Recognition" (ICCV 2023), section 3, without
        its sound: the salience of a frame is the temporal head's own attention to it; the salience of a
        region is its distance from its mean over the clip. Details replace glances only after all glances
        were shifted towards them (`merge_details`).
        """
        spec, rows = self.head.spec, self.start(clips).rows
        images = self._images(rows, self._repeat(frames, clips), spec.glance_size)
        shallow = replace(
            plan.resolved, reducer=Identity(), depth=min(spec.glance_depth, plan.resolved.depth)
        )
        glanced = self._features(images.flatten(0, 1), shallow, None)
        regions, glanced = by_clip(self.head.pooled(glanced), clips), by_clip(glanced, clips)
        state = ClipState(rows, tuple(frames), regions)
        logits, attention = self.predict(state)
        runs = (len(frames), len(frames))
        if plan.exit_rule is not None:
            leaves = plan.exit_rule(list(logits.unbind(1)))
            self._finish(state.select(leaves.nonzero()[:, 0]), FrameCost(0, 0, len(frames), runs), results)
            stay = (~leaves).nonzero()[:, 0]
            state, attention, glanced = state.select(stay), attention[stay], glanced[stay]
        if not len(state.rows):
            return
        salient = self.salient_frames(attention, min(glance.frames, len(frames)))
        details, computed = self._details(state, glanced, salient, glance.share, plan)
        glanced = resized_grids(glanced, plan.image_size // self.model.config.patch_size)
        features = merge_details(glanced, details, computed, salient, self._times(state.frames))
        regions = by_clip(self.head.pooled(features.flatten(0, 1)), len(state.rows))
        full, partial = (salient.shape[1], 0) if glance.share >= 1 else (0, salient.shape[1])
        self._finish(replace(state, regions=regions), FrameCost(full, partial, len(frames), runs), results)

    def salient_frames(self, attention: Tensor, count: int) -> Tensor:
        """The frames with the most attention (B, n): their positions (B, count), in order of time."""
        return attention.topk(count, dim=1).indices.sort(dim=1).values

    def _details(
        self, state: ClipState, glanced: Tensor, salient: Tensor, share: float, plan: VideoPlan
    ) -> tuple[Tensor, Tensor]:
        """Features (B, K, P, R) of the salient frames under the plan, and which were computed (B, K, P).

        glanced: (B, n, Q, R), features of the glance; salient: (B, K), positions among the glanced frames.
        """
        frames = torch.tensor(state.frames, device=salient.device)[salient]
        images, kept = self._images(state.rows, frames, plan.image_size).flatten(0, 1), None
        if share < 1:
            side = plan.image_size // self.model.config.patch_size
            kept = changing_patches(glanced, salient, side, share).flatten(0, 1)
        features = self._features(images, plan.resolved, kept)
        computed = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if kept is not None:
            computed = torch.zeros_like(computed).scatter(1, kept, True)
        return by_clip(features, len(salient)), by_clip(computed, len(salient))

    def _images(self, rows: Tensor, frames: Tensor, side: int) -> Tensor:
        """Frames (B, n) of the clips (B,): (B, n, 3, side, side)."""
        clips = rows.unsqueeze(1).expand_as(frames)
        return by_clip(self.load_frames(clips.flatten(), frames.flatten(), side), len(rows))

    def _features(self, images: Tensor, resolved: ResolvedPlan, kept: Tensor | None) -> Tensor:
        return patch_features_of(self.model, self.head, images, resolved, kept)

    def predict(self, state: ClipState) -> tuple[Tensor, Tensor]:
        """The head's logits (B, n, C) after each frame, in the order of `state.frames`, and its attention to
        each frame (B, n)."""
        at = self._times(state.frames).expand(len(state.rows), -1)
        predicted: tuple[Tensor, Tensor] = self.head(state.regions, at)
        return predicted

    def _times(self, frames: Sequence[int]) -> Tensor:
        """The time of each frame, from 0 to 1: (n,)."""
        return (torch.tensor(frames, device=self.device).float() + 0.5) / self.total

    def _repeat(self, frames: Sequence[int], clips: int) -> Tensor:
        """The same frames for this many clips: (B, n)."""
        return torch.tensor(frames, device=self.device).expand(clips, -1)

    def _finish(self, state: ClipState, cost: FrameCost, results: dict[int, VideoResult]) -> None:
        """Store the results of clips that are complete. The head reads their frames in order of time."""
        if not len(state.rows):
            return
        order = sorted(range(len(state.frames)), key=state.frames.__getitem__)
        frames = tuple(state.frames[i] for i in order)
        logits, _ = self.predict(replace(state, frames=frames, regions=state.regions[:, order]))
        for row, by_frame in zip(state.rows.tolist(), logits.float(), strict=True):
            results[row] = VideoResult(frames, by_frame, cost)


def patch_features_of(
    model: ElasticViT, head: PatchReader, images: Tensor, resolved: ResolvedPlan, kept: Tensor | None
) -> Tensor:
    """The head's reading of each patch of images (N, 3, S, S): (N, P, R).

    kept: (N, K), the patches that enter the trunk; None: all. The features of other patches are undefined.
    """
    tokens = model.embed(images)
    if kept is not None:
        prefix = torch.arange(tokens.prefix, device=kept.device).expand(len(kept), -1)
        tokens = tokens.apply(Assignment(torch.cat([prefix, kept + tokens.prefix], 1)))
    return encode_tokens(model, head, tokens, resolved).patches


def by_clip(x: Tensor, clips: int) -> Tensor:
    """Frames of clips, one clip after the other, (B * n, ...), to (B, n, ...)."""
    return x.reshape(clips, -1, *x.shape[1:])


def clip_of(model: ElasticViT) -> ClipHead:
    """The model's clip head. Raises ValueError for a model without one."""
    if model.clip is None:
        raise ValueError("the model has no clip head: it takes images and no video clips")
    return model.clip
