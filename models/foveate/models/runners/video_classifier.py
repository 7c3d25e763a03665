"""The runner of models that classify video clips: (batch, plan) -> results."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.model import Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models import exits
from foveate.models.layers.config import block_macs, embedding_macs
from foveate.models.runners.base import BaseRunner
from foveate.models.runners.candidates import video_candidates
from foveate.models.runners.clip_plans import (
    check_clip_plan,
    check_reducer,
    final_tokens,
    max_cost,
    parse_glance,
    parse_share,
    trunk_macs,
)
from foveate.models.runners.describe import describe, profiled_ladder
from foveate.models.runners.frame_sampling import FrameCost, VideoExecutor, VideoPlan, VideoResult, clip_of
from foveate.models.vit.resolve import resolve
from foveate.models.weights.checkpoint import Checkpoint


class ClipRunner(BaseRunner):
    """A model that classifies video clips, on one device. `stack` and `run` keep no state."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        """max_batch: clips per batch, 0 for the device's default; profile: None for the standard ladder."""
        spec = clip_of(checkpoint.model).spec
        super().__init__(precision, device, max_batch, checkpoint.mean, checkpoint.std, spec.frames)
        self.model = checkpoint.model.to(self.device, self.dtype).eval()
        self.full = Plan(checkpoint.name, spec.image_size, precision)
        self.resolve = lru_cache(maxsize=256)(self._resolve)
        """The plan resolved for clips. Raises BadPlan when this model cannot run it."""
        self._gflops = lru_cache(maxsize=1024)(self._cost)
        ladder = profiled_ladder(profile, self.full) if profile else self._standard_ladder()
        self.card = describe(checkpoint, self.full, ladder, spec.frames)

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        self.resolve(plan)

    def candidates(self) -> tuple[Plan, ...]:
        """The plans to try when a profile is measured, full first."""
        return video_candidates(self.model, self.full, self.frames, self.card.task, self.check)

    def _resolve(self, plan: Plan) -> VideoPlan:
        check_clip_plan(plan, self.full, self.frames)
        spec, frames = clip_of(self.model).spec, plan.frames or self.frames
        trunk_plan = Plan(plan.variant, plan.image_size, plan.precision, plan.reducer, plan.depth)
        resolved = resolve(self.model, trunk_plan)
        check_reducer(resolved, plan)
        glance = None if plan.glance is None else parse_glance(plan.glance, frames)
        if glance and plan.reuse:
            raise BadPlan("glance and reuse both choose which patches are computed; a plan has one of them")
        if glance and glance.share < 1 and plan.reducer != "none":
            raise BadPlan(f"glance:{plan.glance} computes part of the patches; no reducer goes with it")
        if glance and resolved.depth < spec.glance_depth:
            raise BadPlan(f"depth:{plan.depth} is less than the {spec.glance_depth} blocks of a glance")
        return VideoPlan(
            frames,
            plan.image_size,
            resolved,
            glance,
            1.0 if plan.reuse is None else parse_share(plan.reuse, "reuse"),
            None if plan.exit is None else exits.create(plan.exit),
        )

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per clip of a batch (B, T, S, S, 3) uint8.

        A clip whose scores are not finite fails alone.
        """

        def load_frames(rows: Tensor, frames: Tensor, side: int) -> Tensor:
            return self.preprocess(batch[rows, frames], side)

        executor = VideoExecutor(self.model, load_frames, self.frames)
        return [self._result(video, plan) for video in executor(len(batch), self.resolve(plan))]

    def _result(self, video: VideoResult, plan: Plan) -> Result | Exception:
        scores = video.logits.softmax(-1).cpu().numpy()
        if not math.isfinite(float(scores.sum())):
            return RunFailed("the model's scores for this clip are not finite")
        video_plan = self.resolve(plan)
        tokens = final_tokens(self.model, video_plan, video.cost)
        depth = video_plan.resolved.depth if tokens else clip_of(self.model).spec.glance_depth
        gflops = self._gflops(plan, video.cost)
        return Result(scores[-1], tokens, depth, gflops, frames=video.frames, over_time=scores)

    def _standard_ladder(self) -> tuple[Rung, ...]:
        """Full, and plans of fewer frames without measured quality."""
        plans = [replace(self.full, frames=max(1, self.frames * part // 4)) for part in (1, 2, 3)]
        return (*(self._rung(plan, None) for plan in dict.fromkeys(plans)), self._rung(self.full, 1.0))

    def _rung(self, plan: Plan, quality: float | None) -> Rung:
        """A rung with the plan's cost for a clip that does not exit early."""
        video_plan = self.resolve(plan)
        cost = max_cost(video_plan)
        return Rung(plan, self._cost(plan, cost), final_tokens(self.model, video_plan, cost), quality)

    def _cost(self, plan: Plan, cost: FrameCost) -> float:
        """Billions of multiply-adds of a clip."""
        video_plan, g, head = self.resolve(plan), self.model.config, clip_of(self.model)
        total = trunk_macs(self.model, video_plan, cost) + sum(head.macs(n) for n in cost.head_runs)
        tokens = g.patches(head.spec.glance_size) + g.prefix
        glance = embedding_macs(g, head.spec.glance_size) + (tokens - g.prefix) * g.width * head.spec.reads
        glance += block_macs(g, tokens, (tokens,) * head.spec.glance_depth)
        return (total + cost.glances * glance) / 1e9
