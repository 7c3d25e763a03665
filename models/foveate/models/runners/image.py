"""Run (batch, plan) -> results on one device, at one precision."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, RunFailed
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan, Precision
from foveate.core.point_prompts import Features
from foveate.core.profile import Profile
from foveate.models.runners.base import SIZES, Base, Loaded, Pixels
from foveate.models.runners.dense import class_maps, segment
from foveate.models.runners.describe import describe, profiled, standard
from foveate.models.runners.explain import explain
from foveate.models.runners.point_prompts import ClickRunner, features_of
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.stitch import Stitch
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.family import Family


class TorchRunner(Base):
    """One model, and those that answer in its name, on one device. `stack` and `run` keep no state."""

    def __init__(
        self,
        model: Checkpoint | Family,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        family = model if isinstance(model, Family) else Family(model)
        checkpoint = family.own
        super().__init__(precision, device, max_batch, checkpoint.mean, checkpoint.std)
        self.models = {
            member.name: member.model.to(self.device, self.dtype).eval() for member in family.members
        }
        self.stitches = {
            (spec.answers, str(spec.replaced)): Stitch(
                spec, self.models[spec.starts], joint.to(self.device, self.dtype), self.models[spec.answers]
            )
            for spec, joint in family.stitches.items()
            if {spec.starts, spec.answers} <= set(self.models)
        }
        self.full = Plan(checkpoint.name, checkpoint.config.image_size, precision)
        self.steps = lru_cache(maxsize=256)(self._resolve)
        self._gflops = lru_cache(maxsize=1024)(self._cost)
        ladder = profiled(profile, self.full) if profile else standard(checkpoint.model, self.full)
        self.content = profile.content if profile else None
        others: list[nn.Module] = [sibling.model for sibling in family.siblings]
        others += [family.stitches[spec] for spec in sorted(family.stitches, key=str)]
        others += [family.clicks] if family.clicks else []
        self.card = describe(checkpoint, self.full, ladder, rests_on=(*others, repr(self.content)))
        self.submodels: tuple[Loaded, ...] = ()
        """What is served beside it: what answers clicks on the pictures it has seen, what takes clips."""
        if family.clicks is not None:
            answers = ClickRunner(checkpoint, family.clicks, precision, device, max_batch)
            self.submodels = (answers,)
            self.card = replace(self.card, click_model=answers.card.name)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model, as it is loaded, cannot run the plan."""
        self.steps(plan)

    def varies(self, plan: Plan) -> bool:
        return super().varies(plan) or self.steps(plan).reducer.adaptive

    def _resolve(self, plan: Plan) -> ResolvedPlan:
        """A plan made concrete for the trunk it names."""
        if plan.variant not in self.models:
            raise BadPlan(f"{plan.variant} is not a variant of {self.full.variant}")
        if plan.precision != self.full.precision:
            raise BadPlan(f"{self.full.variant} is loaded in {self.full.precision}, not in {plan.precision}")
        if self.card.task == "segment":
            return self._segment_steps(plan)
        if plan.frames or plan.glance or plan.reuse:
            raise BadPlan(f"frames, glance and reuse are for clips, and {self.full.variant} takes pictures")
        if plan.content is not None:
            self._check_content(plan)
        if plan.stitch is not None:
            self._check_stitch(plan)
        return resolve(self.models[plan.variant], plan)

    def _segment_steps(self, plan: Plan) -> ResolvedPlan:
        """Of a model that names pixels, where a picture leaves by what its gate foretells, or not at all."""
        if plan.stitch or plan.content:
            raise BadPlan("stitches and content rungs name whole pictures, and this model pixels")
        if plan.frames or plan.glance or plan.reuse:
            raise BadPlan(f"frames, glance and reuse are for clips, and {self.full.variant} takes pictures")
        model = self.models[plan.variant]
        concrete = resolve(model, replace(plan, exit=None))
        if price_of(plan) is not None:
            if model.dense is None or model.dense.gate is None:
                raise BadPlan(f"{plan.variant} has no gate, so exit:{plan.exit} cannot be served")
            if concrete.reducer.adaptive:
                raise BadPlan(
                    f"{plan.reducer} and exit:{plan.exit} both go by content; a plan has one of them"
                )
        return concrete

    def _check_content(self, plan: Plan) -> None:
        if self.content is None:
            raise BadPlan(f"{self.full.variant} has no content rungs; foveate profile finds them")
        if replace(plan, content=None) != self.full:
            raise BadPlan(f"content:{plan.content} chooses among whole plans; it stands alone")
        certainty_of(plan)

    def _check_stitch(self, plan: Plan) -> None:
        known = [name for variant, name in self.stitches if variant == plan.variant]
        if plan.stitch not in known:
            raise BadPlan(f"{plan.variant} has no stitch {plan.stitch}; it has {', '.join(known) or 'none'}")
        if replace(plan, stitch=None).parts != "full":
            raise BadPlan(f"stitch:{plan.stitch} takes tokens unreduced through every block that is left")

    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a row; a row whose scores are not finite fails alone."""
        if plan.content is not None and self.content is not None:
            return self.by_content(batch, self.content, certainty_of(plan))
        return self._run(batch, plan)

    def by_content(
        self, batch: Tensor, content: ContentRungs, certainty: float
    ) -> Sequence[Result | Exception]:
        """The router answers all; a picture whose answer may not suffice is answered by a dearer rung."""
        router, *dearer = (Plan.parse(text, self.full) for text in content.rungs)
        routed = self._in_batches(batch, router)
        lost = np.zeros(len(self.card.labels), np.float32)  # of whom nothing is known, nothing is sure
        scores = np.stack([lost if isinstance(r, Exception) else r.scores for r in routed])
        choice = content.choose(scores, certainty)
        results = [_chosen(result, router) for result in routed]
        for number, rung in enumerate(dearer, 1):
            rows = np.flatnonzero(choice == number)
            if len(rows):
                answers = self._in_batches(batch[torch.from_numpy(rows)], rung)
                for row, answer in zip(rows.tolist(), answers, strict=True):
                    results[row] = _chosen(answer, rung, routed[row])
        return results

    def _in_batches(self, batch: Tensor, plan: Plan) -> list[Result | Exception]:
        """As many pictures as there are, at most `max_batch` of them at a time, and in batches of those sizes
        for which a CPU's kernels are made already."""
        found: list[Result | Exception] = []
        while len(found) < len(batch):
            left = min(self.max_batch, len(batch) - len(found))
            size = max(size for size in SIZES if size <= left)
            found += self._run(batch[len(found) : len(found) + size], plan)
        return found

    @torch.inference_mode()
    def _run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """Everybody under one plan that leaves nothing to the content."""
        model = self.models[plan.variant]
        images, concrete = self.sized(batch, plan.image_size), self.steps(plan)
        if model.dense is not None:
            return self._segment(model, images, plan)
        if plan.stitch is not None:
            out = self.stitches[plan.variant, plan.stitch](images)
        else:
            out = model(images, concrete)
        logits = out.logits.float()
        scores = (logits.softmax(-1) if model.config.classes else logits).cpu().numpy()
        rows = zip(scores, out.tokens.tolist(), out.exit_layer.tolist(), _paths(out), strict=True)
        return [_result(row, tokens, layer, self._gflops(plan, path)) for row, tokens, layer, path in rows]

    def _segment(self, model: ElasticViT, images: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """Where each class is, of models that name pixels."""
        scores, canvas = segment(model, images, self.steps(plan), price_of(plan))
        depths = [self.steps(plan).depth] * len(images)
        if canvas.depths is not None:
            depths = canvas.depths.tolist()
        afters: list[tuple[int, ...]] = [()] * len(images)
        if canvas.after is not None:
            afters = [tuple(row) for row in canvas.after.tolist()]
        features: list[Features | None] = [None] * len(images)
        if self.card.click_model and canvas.laid and plan.variant == self.full.variant:
            features = [*features_of(*canvas.laid)]
        named: list[NDArray[np.float32] | None] = [None] * len(images)
        if canvas.logits is not None:
            named = [*canvas.logits.float().softmax(-1).cpu().numpy()]
        found: list[Result | Exception] = []
        for (shares, maps), tokens, depth, after, kept, names in zip(
            class_maps(scores), canvas.tokens.tolist(), depths, afters, features, named, strict=True
        ):
            if maps is None:
                found.append(RunFailed("the model's scores for this picture are not finite"))
            else:
                gflops = self._gflops(plan, (depth, after))
                found.append(
                    Result(shares, tokens, depth, gflops, maps=maps, image_scores=names, features=kept)
                )
        return found

    def explain(self, media: Sequence[Pixels], plan: Plan) -> Sequence[Explanation]:
        """What was looked at in each of the pictures: one more forward, which keeps account."""
        batch = self.stack(media, plan)
        if plan.content is None:
            return self._explain(batch, plan)
        results = self.run(batch, plan)
        rungs = [(r.chosen if isinstance(r, Result) else None) or self.full for r in results]
        found: dict[int, Explanation] = {}
        for rung in set(rungs):
            rows = [row for row, its in enumerate(rungs) if its == rung]
            found.update(zip(rows, self._explain(batch[rows], rung), strict=True))
        return [found[row] for row in range(len(batch))]

    def _explain(self, batch: Tensor, plan: Plan) -> Sequence[Explanation]:
        model, images = self.models[plan.variant], self.sized(batch, plan.image_size)
        if plan.stitch is not None:  # nothing is reduced on the way
            side = plan.image_size // model.config.patch_size
            return [Explanation((side, side), (), model.config.depth)] * len(batch)
        return explain(model, images, self.steps(plan))

    def _cost(self, plan: Plan, path: "Path") -> float:
        if plan.stitch is not None:
            return self.stitches[plan.variant, plan.stitch].flops(plan.image_size)
        return flops(self.models[plan.variant], plan.image_size, self.steps(plan), *path)


Path = tuple[int, tuple[int, ...]]
"""What one picture went through: blocks, and tokens after each block where these vary."""


def _paths(out: TrunkOutput) -> list[Path]:
    """The path of each row, hashable: most rows share one."""
    layers = out.exit_layer.tolist()
    afters = [()] * len(layers) if out.after is None else [tuple(row) for row in out.after.tolist()]
    return list(zip(layers, afters, strict=True))


def _result(scores: NDArray[np.float32], tokens: int, layer: int, gflops: float) -> Result | Exception:
    if not np.isfinite(scores).all():
        return RunFailed("the model's scores for this picture are not finite")
    return Result(scores, tokens, layer, gflops)


def _chosen(
    result: Result | Exception, rung: Plan, routed: Result | Exception | None = None
) -> Result | Exception:
    """The answer of the rung that the content asked for, at what that and the router took."""
    if isinstance(result, Exception):
        return result
    spent = routed.gflops if isinstance(routed, Result) else 0.0
    return replace(result, chosen=rung, gflops=result.gflops + spent)


def price_of(plan: Plan) -> float | None:
    """What all blocks together cost in quality, of a plan whose gate weighs that: `exit:eco:0.1`.

    Raises BadPlan for any other exit, for those name whole pictures.
    """
    if plan.exit is None:
        return None
    kind, _, text = plan.exit.partition(":")
    try:
        flops = float(text)
    except ValueError:
        flops = math.nan
    if kind != "eco" or not 0 <= flops <= 1:
        raise BadPlan(f"a model that names pixels takes exits as in exit:eco:0.1, not exit:{plan.exit}")
    return flops


def certainty_of(plan: Plan) -> float:
    """How sure it must be that a cheaper rung suffices. Raises BadPlan for what is no probability."""
    try:
        certainty = float(plan.content or "")
    except ValueError:
        certainty = math.nan
    if not 0 < certainty <= 1:
        raise BadPlan(f"content takes a probability above 0 and at most 1, as in 0.9; got {plan.content!r}")
    return certainty
