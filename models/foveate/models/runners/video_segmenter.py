"""The runner of models that segment the frames of video clips: (batch, plan) -> results."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.model import Rung
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan, Precision, sampled_frames
from foveate.core.profile import Profile
from foveate.models.runners.base import BaseRunner
from foveate.models.runners.candidates import video_candidates
from foveate.models.runners.clip_plans import (
    check_clip_plan,
    check_reducer,
    final_tokens,
    max_cost,
    parse_share,
    trunk_macs,
)
from foveate.models.runners.dense import ImageSegmentation, class_maps, dense_of
from foveate.models.runners.describe import describe, profiled_ladder
from foveate.models.runners.frame_sampling import VideoPlan, by_clip, patch_features_of
from foveate.models.runners.temporal_reuse import encode_first, encode_next
from foveate.models.vit.resolve import resolve
from foveate.models.weights.checkpoint import Checkpoint

FRAMES = 8
"""Frames of a clip that full segments."""
GUIDANCE = 2.0
"""The extra weight of a change where the previous frames show an object instead of background."""
GUIDED_FRAMES = 2
"""Frames that run together. The result of those before them guides which of their patches are computed."""
STANDARD_RUNGS = ("reuse:0.25", "reuse:0.5")
"""The plans below full of a model that has no profile."""


class ClipSegmenter(BaseRunner):
    """A model that segments the frames of video clips, on one device. `stack` and `run` keep no state."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
        frames: int = FRAMES,
    ) -> None:
        """max_batch: clips per batch, 0 for the device's default; profile: None for the standard ladder;
        frames: of each clip."""
        super().__init__(precision, device, max_batch, checkpoint.mean, checkpoint.std, frames)
        self.model = checkpoint.model.to(self.device, self.dtype).eval()
        self.full = Plan(checkpoint.name, checkpoint.config.image_size, precision)
        self.resolve = lru_cache(maxsize=256)(self._resolve)
        """The plan resolved for clips. Raises BadPlan when this model cannot run it."""
        ladder = profiled_ladder(profile, self.full) if profile else self._standard_ladder()
        self.card = describe(checkpoint, self.full, ladder, frames)

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        self.resolve(plan)

    def candidates(self) -> tuple[Plan, ...]:
        """The plans to try when a profile is measured, full first."""
        return video_candidates(self.model, self.full, self.frames, self.card.task, self.check)

    def _resolve(self, plan: Plan) -> VideoPlan:
        check_clip_plan(plan, self.full, self.frames)
        if plan.exit or plan.glance:
            raise BadPlan(f"exit and glance are for classification, and {self.full.variant} segments clips")
        resolved = resolve(self.model, replace(plan, frames=None, reuse=None))
        check_reducer(resolved, plan)
        reuse = 1.0 if plan.reuse is None else parse_share(plan.reuse, "reuse")
        return VideoPlan(plan.frames or self.frames, plan.image_size, resolved, reuse=reuse)

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per clip of a batch (B, T, S, S, 3) uint8, with maps of each frame that was used.

        A clip whose scores are not finite fails alone.
        """
        video_plan, head = self.resolve(plan), dense_of(self.model)
        frames = tuple(sampled_frames(self.frames, video_plan.frames))
        images = self.preprocess(batch[:, list(frames)].flatten(0, 1), video_plan.image_size)
        features = self._features(by_clip(images, len(batch)), video_plan)
        segmented = class_maps(head.decode(features, head.detail(images)))
        rung = self._rung(plan, None)
        clips = (segmented[i : i + len(frames)] for i in range(0, len(segmented), len(frames)))
        return [self._result(clip, frames, rung, video_plan.resolved.depth) for clip in clips]

    def _result(
        self, clip: Sequence[ImageSegmentation], frames: tuple[int, ...], rung: Rung, depth: int
    ) -> Result | Exception:
        maps: list[ClassMaps] = [frame.maps for frame in clip if frame.maps is not None]
        if len(maps) < len(clip):
            return RunFailed("the model's scores for this clip are not finite")
        shares = np.stack([frame.shares for frame in clip]).mean(0)
        return Result(shares, rung.tokens, depth, rung.gflops, frames=frames, frame_maps=tuple(maps))

    def _features(self, frames: Tensor, plan: VideoPlan) -> Tensor:
        """Frames (B, n, 3, S, S) to the head's features of their patches (B * n, P, W)."""

        def encoder(images: Tensor, kept: Tensor | None) -> Tensor:
            return patch_features_of(self.model, dense_of(self.model), images, plan.resolved, kept)

        if plan.reuse >= 1 or frames.shape[1] == 1:
            return encoder(frames.flatten(0, 1), None)
        patch = self.model.config.patch_size
        state = encode_first(encoder, frames[:, 0], patch)
        by_frame = [state.features.unsqueeze(1)]
        for group in torch.split(frames[:, 1:], GUIDED_FRAMES, 1):
            weight = self._guidance(state.features)
            features, state = encode_next(encoder, group, plan.reuse, patch, state, weight)
            by_frame.append(features)
        return torch.cat(by_frame, 1).flatten(0, 1)

    def _guidance(self, features: Tensor) -> Tensor:
        """The weight of a change at each patch (B, P): highest on objects of the last frame and next to them.

        As in "ToC3D" (ECCV 2024), the previous result decides which tokens deserve compute.
        features: (B, P, W) of the last frame.
        """
        probabilities = dense_of(self.model).classify_patches(features).float().softmax(-1)
        side = round(features.shape[1] ** 0.5)
        objects = (1 - probabilities[..., 0]).view(-1, 1, side, side)
        near = F.max_pool2d(objects, 3, stride=1, padding=1)
        return 1 + GUIDANCE * near.flatten(1)

    def _standard_ladder(self) -> tuple[Rung, ...]:
        """Full, and plans that reuse patches, without measured quality."""
        plans = [Plan.parse(text, self.full) for text in STANDARD_RUNGS]
        return (*(self._rung(plan, None) for plan in plans), self._rung(self.full, 1.0))

    def _rung(self, plan: Plan, quality: float | None) -> Rung:
        """A rung with the plan's cost, and its tokens of all frames together."""
        video_plan = self.resolve(plan)
        cost = max_cost(video_plan)
        patches = video_plan.image_size // self.model.config.patch_size
        head_macs = video_plan.frames * dense_of(self.model).macs(patches)
        macs = trunk_macs(self.model, video_plan, cost) + head_macs
        return Rung(plan, macs / 1e9, final_tokens(self.model, video_plan, cost), quality)
