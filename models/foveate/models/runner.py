"""Run (batch, plan) -> results on one device, at one precision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, RunFailed
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models.checkpoint import Checkpoint
from foveate.models.concrete import steps
from foveate.models.dense import class_maps, segment
from foveate.models.describe import describe
from foveate.models.explain import explain
from foveate.models.family import Family
from foveate.models.price import price
from foveate.models.stitch import Stitch
from foveate.models.vit import ElasticViT, Steps, TrunkOutput

Pixels = NDArray[np.uint8]
"""(S, S, 3) RGB."""

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MAX_BATCH = {"cpu": 32, "cuda": 64}
SIZES = tuple(sorted({base << shift for base in (1, 3) for shift in range(12)}))
"""Batches have one of few sizes, 1, 2, 3, 4, 6, 8, 12 ...: a CPU's kernels are made for each of them."""


class TorchRunner:
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
        self.device, self.dtype = torch.device(device), DTYPES[precision]
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
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, 16)
        self.full = Plan(checkpoint.name, checkpoint.geometry.image_size, precision)
        shape = (1, 3, 1, 1)
        # Pixels come in 0..255: one multiplication and one addition bring them to the model's range.
        mean, std = (torch.tensor(v).view(shape) for v in (checkpoint.mean, checkpoint.std))
        self._scale = (1 / (255 * std)).to(self.device)
        self._shift = (-mean / std).to(self.device)
        self.steps = lru_cache(maxsize=256)(self._resolve)
        self._gflops = lru_cache(maxsize=1024)(self._cost)
        self.card = describe(checkpoint, self.full, profile)
        self.content = profile.content if profile else None
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds of a batch by threads, plan and size, as measured at the start."""

    def use(self, threads: int) -> None:
        """Run what comes next on so many threads."""
        torch.set_num_threads(threads)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model, as it is loaded, cannot run the plan."""
        self.steps(plan)

    def _resolve(self, plan: Plan) -> Steps:
        """A plan made concrete for the trunk it names."""
        if plan.variant not in self.models:
            raise BadPlan(f"{plan.variant} is not a variant of {self.full.variant}")
        if plan.precision != self.full.precision:
            raise BadPlan(f"{self.full.variant} is loaded in {self.full.precision}, not in {plan.precision}")
        if self.card.task == "segment" and (plan.exit or plan.stitch or plan.content):
            raise BadPlan("exits, stitches and content rungs name whole pictures, and this model pixels")
        if plan.content is not None:
            self._check_content(plan)
        if plan.stitch is not None:
            self._check_stitch(plan)
        return steps(self.models[plan.variant], plan)

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
        if replace(plan, stitch=None).steps != "full":
            raise BadPlan(f"stitch:{plan.stitch} takes tokens unreduced through every block that is left")

    def stack(self, media: Sequence[Pixels], plan: Plan) -> Tensor:
        """Pictures of the plan's size, or all of full's, (S, S, 3) to one tensor (B, S, S, 3) uint8.

        No torch operator that would use threads runs here: a second pool of OpenMP threads in the
        process makes libgomp stop spinning, and a lone forward 1.7 times slower on two cores.
        """
        sides = {self.full.image_size, plan.image_size}
        shapes = {pixels.shape for pixels in media}
        if len(shapes) > 1 or not shapes <= {(side, side, 3) for side in sides}:
            raise RunFailed(f"expected pictures of {plan.image_size} pixels a side, got {shapes}")
        return torch.from_numpy(np.stack(media)).to(self.device, non_blocking=True)

    def sized(self, batch: Tensor, side: int) -> Tensor:
        """(B, S, S, 3) uint8 to (B, 3, side, side) in the model's range and precision.

        Pictures that came larger than the plan wants are scaled down here.
        """
        pixels = batch.permute(0, 3, 1, 2)
        if batch.shape[1] != side:
            # On bytes the CPU's kernel is five times faster than on floats; CUDA has none for bytes.
            source = pixels if self.device.type == "cpu" else pixels.float()
            pixels = F.interpolate(source, size=(side, side), mode="bicubic", antialias=True)
        return torch.addcmul(self._shift, pixels.float(), self._scale).to(self.dtype)

    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a row; a row whose scores are not finite fails alone."""
        if plan.content is not None and self.content is not None:
            return self.by_content(batch, self.content, certainty_of(plan))
        return self._run(batch, plan)

    def by_content(
        self, batch: Tensor, content: ContentRungs, certainty: float
    ) -> Sequence[Result | Exception]:
        """The scout answers all; a picture whose answer may not suffice is answered by a dearer rung."""
        scout, *dearer = (Plan.parse(text, self.full) for text in content.rungs)
        scouted = self._in_batches(batch, scout)
        lost = np.zeros(len(self.card.labels), np.float32)  # of whom nothing is known, nothing is sure
        scores = np.stack([lost if isinstance(r, Exception) else r.scores for r in scouted])
        choice = content.choose(scores, certainty)
        results = [_chosen(result, scout) for result in scouted]
        for number, rung in enumerate(dearer, 1):
            rows = np.flatnonzero(choice == number)
            if len(rows):
                answers = self._in_batches(batch[torch.from_numpy(rows)], rung)
                for row, answer in zip(rows.tolist(), answers, strict=True):
                    results[row] = _chosen(answer, rung, scouted[row])
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
        scores = (logits.softmax(-1) if model.geometry.classes else logits).cpu().numpy()
        rows = zip(scores, out.tokens.tolist(), out.exit_layer.tolist(), _paths(out), strict=True)
        return [_result(row, tokens, layer, self._gflops(plan, path)) for row, tokens, layer, path in rows]

    def _segment(self, model: ElasticViT, images: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """Where each class is, of models that name pixels."""
        scores, canvas = segment(model, images, self.steps(plan))
        depth = self.steps(plan).depth
        afters: list[tuple[int, ...]] = [()] * len(images)
        if canvas.after is not None:
            afters = [tuple(row) for row in canvas.after.tolist()]
        found: list[Result | Exception] = []
        for (shares, maps), tokens, after in zip(
            class_maps(scores), canvas.tokens.tolist(), afters, strict=True
        ):
            if maps is None:
                found.append(RunFailed("the model's scores for this picture are not finite"))
            else:
                found.append(Result(shares, tokens, depth, self._gflops(plan, (depth, after)), maps=maps))
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
            side = plan.image_size // model.geometry.patch_size
            return [Explanation((side, side), (), model.geometry.depth)] * len(batch)
        return explain(model, images, self.steps(plan))

    def _cost(self, plan: Plan, path: "Path") -> float:
        if plan.stitch is not None:
            return self.stitches[plan.variant, plan.stitch].price(plan.image_size)
        return price(self.models[plan.variant], plan.image_size, self.steps(plan), *path)


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
    result: Result | Exception, rung: Plan, scouted: Result | Exception | None = None
) -> Result | Exception:
    """The answer of the rung that the content asked for, at what that and the scout took."""
    if isinstance(result, Exception):
        return result
    spent = scouted.gflops if isinstance(scouted, Result) else 0.0
    return replace(result, chosen=rung, gflops=result.gflops + spent)


def certainty_of(plan: Plan) -> float:
    """How sure it must be that a cheaper rung suffices. Raises BadPlan for what is no probability."""
    try:
        certainty = float(plan.content or "")
    except ValueError:
        certainty = math.nan
    if not 0 < certainty <= 1:
        raise BadPlan(f"content takes a probability above 0 and at most 1, as in 0.9; got {plan.content!r}")
    return certainty
