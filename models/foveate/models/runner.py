"""Run (batch, plan) -> results on one device, at one precision."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models import exits, reduction
from foveate.models.explain import explain
from foveate.models.family import Family
from foveate.models.geometry import Place
from foveate.models.hub import Checkpoint
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
MAX_BATCH = {"cpu": 8, "cuda": 64}
STANDARD_RUNGS = ("evit:0.3", "evit:0.5", "evit:0.7", "evit:0.9")


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
        self.card = describe(family, self.full, profile)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model, as it is loaded, cannot run the plan."""
        self.steps(plan)

    def _resolve(self, plan: Plan) -> Steps:
        """A plan made concrete for the trunk it names."""
        if plan.variant not in self.models:
            raise BadPlan(f"{plan.variant} is not a variant of {self.full.variant}")
        if plan.precision != self.full.precision:
            raise BadPlan(f"{self.full.variant} is loaded in {self.full.precision}, not in {plan.precision}")
        if plan.stitch is not None:
            self._check_stitch(plan)
        return steps(self.models[plan.variant], plan)

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

    def _normalise(self, batch: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 to (B, 3, S, S) in the model's range and precision."""
        return torch.addcmul(self._shift, batch.permute(0, 3, 1, 2).float(), self._scale).to(self.dtype)

    def sized(self, batch: Tensor, side: int) -> Tensor:
        """Pixels at a plan's size: pictures that came larger are scaled down here."""
        if batch.shape[1] == side:
            return self._normalise(batch)
        images = torch.addcmul(self._shift, batch.permute(0, 3, 1, 2).float(), self._scale)
        return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).to(self.dtype)

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a row; a row whose scores are not finite fails alone."""
        model = self.models[plan.variant]
        images, concrete = self.sized(batch, plan.image_size), self.steps(plan)
        if plan.stitch is not None:
            out = self.stitches[plan.variant, plan.stitch](images)
        else:
            out = model(images, concrete)
        logits = out.logits.float()
        scores = (logits.softmax(-1) if model.geometry.classes else logits).cpu().numpy()
        paths = _paths(out)
        rows = zip(scores, out.tokens.tolist(), out.exit_layer.tolist(), paths, strict=True)
        return [_result(row, tokens, layer, self._gflops(plan, path)) for row, tokens, layer, path in rows]

    def explain(self, media: Sequence[Pixels], plan: Plan) -> Sequence[Explanation]:
        """What was looked at in each of the pictures: one more forward, which keeps account."""
        images = self._normalise(self.stack(media, plan))
        return explain(self.models[plan.variant], images, self.steps(plan))

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


def steps(model: ElasticViT, plan: Plan) -> Steps:
    """What the plan does at each block of this trunk. Raises BadPlan when it cannot be done."""
    g = model.geometry
    if plan.image_size % g.patch_size or plan.image_size > g.image_size:
        raise BadPlan(f"image size must be a multiple of {g.patch_size} and at most {g.image_size}")
    if plan.depth is not None and plan.depth > g.depth:
        raise BadPlan(f"{plan.variant} has {g.depth} blocks; depth:{plan.depth} is past its end")
    if plan.heads is not None and plan.heads > g.heads:
        raise BadPlan(f"{plan.variant} has {g.heads} heads; heads:{plan.heads} is more")
    if plan.exit is not None and not len(model.exit_heads):
        raise BadPlan(f"{plan.variant} has no exit heads, so exit:{plan.exit} cannot be served")
    heads = 0 if plan.heads in (None, g.heads) else plan.heads
    rule = None if plan.exit is None else exits.create(plan.exit)
    reducer = reduction.create(plan.reducer, model)
    if heads and reducer.place is Place.AHEAD:
        raise BadPlan(f"{plan.reducer} fuses the attention of all heads; it does not go with heads:{heads}")
    return Steps(reducer, plan.depth or g.depth, rule, heads)


def rung(model: ElasticViT, plan: Plan, quality: float | None) -> Rung:
    """What a plan costs on this trunk when no sample leaves early."""
    g = model.geometry
    concrete = steps(model, plan)
    after = concrete.reducer.after(g.patches(plan.image_size) + g.prefix, g.prefix, concrete.depth)
    return Rung(plan, price(model, plan.image_size, concrete, concrete.depth), after[-1], quality)


def describe(family: Family, full: Plan, profile: Profile | None = None) -> ModelCard:
    """The card of a loaded model; its ladder is the profile's, else the one that was declared with it."""
    checkpoint = family.own
    model = checkpoint.model
    return ModelCard(
        name=checkpoint.name,
        description=checkpoint.description,
        full=full,
        labels=checkpoint.labels or tuple(f"class {i}" for i in range(model.geometry.classes)),
        parameters=sum(p.numel() for p in model.parameters()),
        input=checkpoint.input,
        ladder=_profiled(profile, full) if profile else _declared(checkpoint, full),
        licence=checkpoint.licence,
        source=checkpoint.source,
    )


def _profiled(profile: Profile, full: Plan) -> tuple[Rung, ...]:
    """The profile's rungs, whose cost is what its pictures took where that depends on the picture."""
    return tuple(
        Rung(Plan.parse(m.plan, full), m.gflops, m.tokens, m.quality, m.latency_s or None)
        for m in profile.ladder
    )


def _declared(checkpoint: Checkpoint, full: Plan) -> tuple[Rung, ...]:
    """The rungs on the model's card, or the standard ones unmeasured."""
    model = checkpoint.model
    measured = {Plan.parse(text, full): quality for text, quality in checkpoint.qualities.items()}
    standard = STANDARD_RUNGS if model.geometry.class_token else ()
    unmeasured: dict[Plan, float | None] = {Plan.parse(text, full): None for text in standard}
    plans = measured or unmeasured
    rungs = [rung(model, plan, quality) for plan, quality in plans.items() if plan != full]
    return (*sorted(rungs, key=lambda r: r.gflops), rung(model, full, 1.0))
