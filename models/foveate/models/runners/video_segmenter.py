"""Run (clips, plan) -> what each pixel shows, frame by frame."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.model import Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision, sampled_frames
from foveate.core.profile import Profile
from foveate.models.runners.base import Base
from foveate.models.runners.clip_plans import (
    check_clip_plan,
    check_reducer,
    share,
    spent_at_most,
    tokens_of,
    trunk_macs,
)
from foveate.models.runners.dense import class_maps, dense_of
from foveate.models.runners.describe import describe, profiled
from foveate.models.runners.frame_sampling import VideoPlan, by_clip, patch_features_of
from foveate.models.runners.temporal_reuse import first_look, look_again
from foveate.models.vit.resolve import resolve
from foveate.models.weights.checkpoint import Checkpoint

FRAMES = 8
"""Frames of a clip that are looked at, at full."""
GUIDANCE = 2.0
"""How much more a change counts where an object was found before than where there was background."""
GUIDED = 2
"""Frames that run together, and are guided by what was found in those before them."""
STANDARD = ("reuse:0.25", "reuse:0.5")


class ClipSegmenter(Base):
    """A model that names pixels, looking at clips, on one device. `stack` and `run` keep no state."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
        frames: int = FRAMES,
    ) -> None:
        super().__init__(precision, device, max_batch, checkpoint.mean, checkpoint.std, frames)
        self.model = checkpoint.model.to(self.device, self.dtype).eval()
        self.full = Plan(checkpoint.name, checkpoint.config.image_size, precision)
        self.look = lru_cache(maxsize=256)(self._resolve)
        ladder = profiled(profile, self.full) if profile else self._standard()
        self.card = describe(checkpoint, self.full, ladder, frames)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model cannot run the plan."""
        self.look(plan)

    def _resolve(self, plan: Plan) -> VideoPlan:
        """A plan made concrete for clips."""
        check_clip_plan(plan, self.full, self.frames)
        if plan.exit or plan.glance:
            raise BadPlan("exits and glances name whole clips, and this model pixels")
        concrete = resolve(self.model, replace(plan, frames=None, reuse=None))
        check_reducer(concrete, plan)
        reuse = 1.0 if plan.reuse is None else share(plan.reuse, "reuse")
        return VideoPlan(plan.frames or self.frames, plan.image_size, concrete, reuse=reuse)

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a clip, with maps of each frame that was seen. batch: (B, T, S, S, 3) uint8."""
        look, head = self.look(plan), dense_of(self.model)
        frames = tuple(sampled_frames(self.frames, look.frames))
        images = self.sized(batch[:, list(frames)].flatten(0, 1), look.size)
        canvas = self._canvas(by_clip(images, len(batch)), look)
        maps = class_maps(head.decode(canvas, head.detail(images)))
        rung = self._rung(plan, None)
        found: list[Result | Exception] = []
        for first in range(0, len(maps), len(frames)):
            shares, film = zip(*maps[first : first + len(frames)], strict=True)
            seen = [one for one in film if one is not None]
            if len(seen) < len(film):
                found.append(RunFailed("the model's scores for this clip are not finite"))
                continue
            scores = np.stack(shares).mean(0)
            depth = look.steps.depth
            found.append(
                Result(scores, rung.tokens, depth, rung.gflops, frames=frames, frame_maps=tuple(seen))
            )
        return found

    def _canvas(self, frames: Tensor, look: VideoPlan) -> Tensor:
        """Patches as the head reads them: (B, n, 3, S, S) to (B * n, P, W)."""

        def read(images: Tensor, kept: Tensor | None) -> Tensor:
            return patch_features_of(self.model, dense_of(self.model), images, look.steps, kept)

        if look.reuse >= 1 or frames.shape[1] == 1:
            return read(frames.flatten(0, 1), None)
        patch = self.model.config.patch_size
        memory = first_look(read, frames[:, 0], patch)
        found = [memory.canvas.unsqueeze(1)]
        for some in torch.split(frames[:, 1:], GUIDED, 1):
            weight = self._guidance(memory.canvas)
            canvas, memory = look_again(read, some, look.reuse, patch, memory, weight)
            found.append(canvas)
        return torch.cat(found, 1).flatten(0, 1)

    def _guidance(self, canvas: Tensor) -> Tensor:
        """How much change counts at each patch (B, P): most where the frame shows an object, or next to it.

        As in "ToC3D" (ECCV 2024) what was found before tells which tokens deserve the compute.
        """
        named = dense_of(self.model).classify_patches(canvas).float().softmax(-1)
        side = round(canvas.shape[1] ** 0.5)
        shown = (1 - named[..., 0]).view(-1, 1, side, side)
        near = F.max_pool2d(shown, 3, stride=1, padding=1)
        return 1 + GUIDANCE * near.flatten(1)

    def _standard(self) -> tuple[Rung, ...]:
        """Plans that reuse patches; what they keep, nobody has measured."""
        plans = [Plan.parse(text, self.full) for text in STANDARD]
        return (*(self._rung(plan, None) for plan in plans), self._rung(self.full, 1.0))

    def _rung(self, plan: Plan, quality: float | None) -> Rung:
        """What a plan costs: GFLOPs, and tokens of all frames together."""
        look = self.look(plan)
        spent = spent_at_most(look)
        head = look.frames * dense_of(self.model).macs(look.size // self.model.config.patch_size)
        macs = trunk_macs(self.model, look, spent) + head
        return Rung(plan, macs / 1e9, tokens_of(self.model, look, spent), quality)
