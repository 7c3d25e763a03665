"""The runner of images: (batch, plan) -> results, on one device at one precision."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import RunFailed
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan, Precision
from foveate.core.point_prompts import Features
from foveate.core.profile import Profile
from foveate.models.runners.base import ModelRunner, Pixels, check_model
from foveate.models.runners.candidates import baselines, candidates
from foveate.models.runners.classifier import ClassifierRunner, classified
from foveate.models.runners.dense import PatchFeatures, class_maps, segment
from foveate.models.runners.describe import describe, profiled_ladder, standard_ladder
from foveate.models.runners.explain import explain
from foveate.models.runners.image_plans import (
    parse_full_cost,
    resolve_classification,
    resolve_segmentation,
)
from foveate.models.runners.point_prompts import ClickRunner, features_of
from foveate.models.vit.flops import flops
from foveate.models.vit.stitch import Stitch
from foveate.models.vit.vit import ResolvedPlan, TrunkOutput
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.family import Family

ComputePath = tuple[int, tuple[int, ...]]
"""The compute of one image: blocks that ran, and tokens after each block where these vary."""


class TorchRunner(ClassifierRunner):
    """A model that classifies or segments images, and its siblings, on one device.

    `stack` and `run` keep no state.
    """

    def __init__(
        self,
        model: Checkpoint | Family,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        """max_batch: items per batch, 0 for the device's default; profile: None for the standard ladder."""
        family = model if isinstance(model, Family) else Family(model)
        checkpoint = family.own
        super().__init__(precision, device, max_batch, checkpoint.mean, checkpoint.std)
        self.models = {
            member.name: member.model.to(self.device, self.dtype).eval() for member in family.members
        }
        """Trunks by variant."""
        self.stitches = {
            (spec.answers, str(spec.replaced)): Stitch(
                spec, self.models[spec.starts], joint.to(self.device, self.dtype), self.models[spec.answers]
            )
            for spec, joint in family.stitches.items()
            if {spec.starts, spec.answers} <= set(self.models)
        }
        """Stitches by variant and name."""
        self.full = Plan(checkpoint.name, checkpoint.config.image_size, precision)
        self.resolve = lru_cache(maxsize=256)(self._resolve)
        """The plan resolved for its trunk. Raises BadPlan when this model cannot run it."""
        self._gflops = lru_cache(maxsize=1024)(self._cost)
        ladder = (
            profiled_ladder(profile, self.full) if profile else standard_ladder(checkpoint.model, self.full)
        )
        self.content = profile.content if profile else None
        others: list[nn.Module] = [sibling.model for sibling in family.siblings]
        others += [family.stitches[spec] for spec in sorted(family.stitches, key=str)]
        others += [family.clicks] if family.clicks else []
        self.card = describe(checkpoint, self.full, ladder, depends_on=(*others, repr(self.content)))
        self.decoded_side = self.card.input_side
        self.submodels: tuple[ModelRunner, ...] = ()
        """Models served with this one: one answers clicks on its features, one takes video clips."""
        if family.clicks is not None:
            click_runner = ClickRunner(checkpoint, family.clicks, precision, device, max_batch)
            self.submodels = (click_runner,)
            self.card = replace(self.card, click_model=click_runner.card.name)

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        self.resolve(plan)

    def candidates(self) -> tuple[Plan, ...]:
        """The plans to try when a profile is measured, full first; the baselines come last."""
        model = self.models[self.full.variant]
        siblings = {name: member for name, member in self.models.items() if member is not model}
        served = candidates(model, self.full, self.check, siblings, list(self.stitches))
        return (*served, *baselines(model, self.full, self.check))

    def cost_varies(self, plan: Plan) -> bool:
        """Whether the plan's compute depends on the content of the images."""
        return super().cost_varies(plan) or self.resolve(plan).reducer.adaptive

    def _resolve(self, plan: Plan) -> ResolvedPlan:
        check_model(plan, self.full, self.models)
        if self.card.task == "segment":
            return resolve_segmentation(plan, self.full, self.models)
        stitches = [name for variant, name in self.stitches if variant == plan.variant]
        return resolve_classification(plan, self.full, self.models, self.content is not None, stitches)

    def batch_limit(self, plan: Plan) -> int:
        """Most images of one forward: of a plan larger than full, as many as take a full batch's memory."""
        if plan.image_size <= self.full.image_size:
            return self.max_batch
        return max(1, int(self.max_batch * (self.full.image_size / plan.image_size) ** 2))

    @torch.inference_mode()
    def run_plan(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per image of a batch (B, S, S, 3) uint8, all under a plan without content rungs."""
        model = self.models[plan.variant]
        images, resolved = self.preprocess(batch, plan.image_size), self.resolve(plan)
        if model.dense is not None:
            return self._segmentation_results(*segment(model, images, resolved, parse_full_cost(plan)), plan)
        if plan.stitch is not None:
            out = self.stitches[plan.variant, plan.stitch](images)
        else:
            out = model(images, resolved)
        logits = out.logits.float()
        scores = (logits.softmax(-1) if model.config.classes else logits).cpu().numpy()
        rows = zip(scores, out.tokens.tolist(), out.exit_layer.tolist(), _paths(out), strict=True)
        return [classified(row, tokens, layer, self._gflops(plan, path)) for row, tokens, layer, path in rows]

    def _segmentation_results(
        self, scores: Tensor, features: PatchFeatures, plan: Plan
    ) -> Sequence[Result | Exception]:
        """scores: (B, C, h, w); features: of the same images."""
        count = len(scores)
        depths = [self.resolve(plan).depth] * count
        if features.depths is not None:
            depths = features.depths.tolist()
        afters: list[tuple[int, ...]] = [()] * count
        if features.after is not None:
            afters = [tuple(row) for row in features.after.tolist()]
        for_clicks: list[Features | None] = [None] * count
        if self.card.click_model and features.maps and plan.variant == self.full.variant:
            for_clicks = [*features_of(*features.maps)]
        classes: list[NDArray[np.float32] | None] = [None] * count
        if features.logits is not None:
            classes = [*features.logits.float().softmax(-1).cpu().numpy()]
        results: list[Result | Exception] = []
        for (shares, maps), tokens, depth, after, kept, probabilities in zip(
            class_maps(scores), features.tokens.tolist(), depths, afters, for_clicks, classes, strict=True
        ):
            if maps is None:
                results.append(RunFailed("the model's scores for this image are not finite"))
                continue
            gflops = self._gflops(plan, (depth, after))
            results.append(
                Result(shares, tokens, depth, gflops, maps=maps, image_scores=probabilities, features=kept)
            )
        return results

    def explain(self, media: Sequence[Pixels], plan: Plan) -> Sequence[Explanation]:
        """What happened to the patches of each image. One more forward runs, which records the tokens."""
        batch = self.stack(media, plan)
        if plan.content is None:
            return self._explain(batch, plan)
        results = self.run(batch, plan)
        rungs = [(r.chosen if isinstance(r, Result) else None) or self.full for r in results]
        explanations: dict[int, Explanation] = {}
        for rung in set(rungs):
            rows = [row for row, its in enumerate(rungs) if its == rung]
            explanations.update(zip(rows, self._explain(batch[rows], rung), strict=True))
        return [explanations[row] for row in range(len(batch))]

    def _explain(self, batch: Tensor, plan: Plan) -> Sequence[Explanation]:
        model, images = self.models[plan.variant], self.preprocess(batch, plan.image_size)
        if plan.stitch is not None:  # a stitch reduces nothing
            side = plan.image_size // model.config.patch_size
            return [Explanation((side, side), (), model.config.depth)] * len(batch)
        return explain(model, images, self.resolve(plan))

    def _cost(self, plan: Plan, path: ComputePath) -> float:
        """Billions of multiply-adds of an image."""
        if plan.stitch is not None:
            return self.stitches[plan.variant, plan.stitch].flops(plan.image_size)
        return flops(self.models[plan.variant], plan.image_size, self.resolve(plan), *path)


def _paths(out: TrunkOutput) -> list[ComputePath]:
    """The path of each image, hashable: most images of a batch share one."""
    layers = out.exit_layer.tolist()
    afters = [()] * len(layers) if out.after is None else [tuple(row) for row in out.after.tolist()]
    return list(zip(layers, afters, strict=True))
