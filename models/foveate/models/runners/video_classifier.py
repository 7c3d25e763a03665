"""Run (clips, plan) -> what happens in each of them."""

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
from foveate.models.runners.base import Base
from foveate.models.runners.clip_plans import (
    check_clip_plan,
    check_reducer,
    glance_of,
    share,
    spent_at_most,
    tokens_of,
    trunk_macs,
)
from foveate.models.runners.describe import describe, profiled
from foveate.models.runners.frame_sampling import FrameCost, VideoExecutor, VideoPlan, VideoResult, clip_of
from foveate.models.vit.resolve import resolve
from foveate.models.weights.checkpoint import Checkpoint


class ClipRunner(Base):
    """A model that names what happens in clips, on one device. `stack` and `run` keep no state."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        spec = clip_of(checkpoint.model).spec
        super().__init__(precision, device, max_batch, checkpoint.mean, checkpoint.std, spec.frames)
        self.model = checkpoint.model.to(self.device, self.dtype).eval()
        self.full = Plan(checkpoint.name, spec.image_size, precision)
        self.look = lru_cache(maxsize=256)(self._resolve)
        self._gflops = lru_cache(maxsize=1024)(self._cost)
        ladder = profiled(profile, self.full) if profile else self._standard()
        self.card = describe(checkpoint, self.full, ladder, spec.frames)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model cannot run the plan."""
        self.look(plan)

    def _resolve(self, plan: Plan) -> VideoPlan:
        """A plan made concrete for clips."""
        check_clip_plan(plan, self.full, self.frames)
        own = clip_of(self.model).spec
        bare = Plan(plan.variant, plan.image_size, plan.precision, plan.reducer, plan.depth)
        concrete = resolve(self.model, bare)
        check_reducer(concrete, plan)
        glance = None if plan.glance is None else glance_of(plan.glance, plan.frames or self.frames)
        if glance and plan.reuse:
            raise BadPlan("glance and reuse both say which patches are computed; a plan has one of them")
        if glance and glance[1] < 1 and plan.reducer != "none":
            raise BadPlan(f"glance:{plan.glance} leaves part of the patches; no reducer goes with it")
        if glance and concrete.depth < own.glance_depth:
            raise BadPlan(f"depth:{plan.depth} is less than the {own.glance_depth} blocks of a glance")
        return VideoPlan(
            plan.frames or self.frames,
            plan.image_size,
            concrete,
            glance,
            1.0 if plan.reuse is None else share(plan.reuse, "reuse"),
            None if plan.exit is None else exits.create(plan.exit),
        )

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a clip; one whose scores are not finite fails alone. batch: (B, T, S, S, 3) uint8."""

        def see(rows: Tensor, frames: Tensor, side: int) -> Tensor:
            return self.sized(batch[rows, frames], side)

        look = self.look(plan)
        return [
            self._result(found, plan)
            for found in VideoExecutor(self.model, see, self.frames)(len(batch), look)
        ]

    def _result(self, found: VideoResult, plan: Plan) -> Result | Exception:
        scores = found.logits.softmax(-1).cpu().numpy()
        if not math.isfinite(float(scores.sum())):
            return RunFailed("the model's scores for this clip are not finite")
        look = self.look(plan)
        tokens = tokens_of(self.model, look, found.spent)
        depth = look.steps.depth if tokens else clip_of(self.model).spec.glance_depth
        gflops = self._gflops(plan, found.spent)
        return Result(scores[-1], tokens, depth, gflops, frames=found.frames, over_time=scores)

    def _standard(self) -> tuple[Rung, ...]:
        """Plans of fewer frames; what they keep, nobody has measured."""
        plans = [replace(self.full, frames=max(1, self.frames * part // 4)) for part in (1, 2, 3)]
        return (*(self._rung(plan, None) for plan in dict.fromkeys(plans)), self._rung(self.full, 1.0))

    def _rung(self, plan: Plan, quality: float | None) -> Rung:
        """What a plan costs when no clip leaves early."""
        look = self.look(plan)
        spent = spent_at_most(look)
        return Rung(plan, self._cost(plan, spent), tokens_of(self.model, look, spent), quality)

    def _cost(self, plan: Plan, spent: FrameCost) -> float:
        """Billions of multiply-adds."""
        look, g, head = self.look(plan), self.model.config, clip_of(self.model)
        total = trunk_macs(self.model, look, spent) + sum(head.macs(frames) for frames in spent.runs)
        rough = g.patches(head.spec.glance_size) + g.prefix
        glance = embedding_macs(g, head.spec.glance_size) + (rough - g.prefix) * g.width * head.spec.reads
        glance += block_macs(g, rough, (rough,) * head.spec.glance_depth)
        return (total + spent.glances * glance) / 1e9
