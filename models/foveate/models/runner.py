"""Run (batch, plan) -> results on one device, at one precision."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision
from foveate.models import exits, reduction
from foveate.models.explain import kept_until
from foveate.models.geometry import gmacs
from foveate.models.hub import Checkpoint
from foveate.models.vit import ElasticViT, Steps

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
    """One model on one device. `stack` and `run` keep no state between calls."""

    def __init__(
        self, checkpoint: Checkpoint, precision: Precision = "fp32", device: str = "cpu", max_batch: int = 0
    ) -> None:
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        self.model = checkpoint.model.to(self.device, self.dtype).eval()
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, 16)
        self.full = Plan(checkpoint.name, self.model.geometry.image_size, precision)
        shape = (1, 3, 1, 1)
        # Pixels come in 0..255: one multiplication and one addition bring them to the model's range.
        mean, std = (torch.tensor(v).view(shape) for v in (checkpoint.mean, checkpoint.std))
        self._scale = (1 / (255 * std)).to(self.device)
        self._shift = (-mean / std).to(self.device)
        self.steps = lru_cache(maxsize=256)(self._resolve)
        self._gflops = lru_cache(maxsize=1024)(self._cost)
        self.card = describe(checkpoint, self.full)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model, as it is loaded, cannot run the plan."""
        self.steps(plan)

    def _resolve(self, plan: Plan) -> Steps:
        """A plan made concrete for this trunk."""
        if plan.variant != self.full.variant:
            raise BadPlan(f"{plan.variant} is not a variant of {self.full.variant}")
        if plan.precision != self.full.precision:
            raise BadPlan(f"{self.full.variant} is loaded in {self.full.precision}, not in {plan.precision}")
        return steps(self.model, plan)

    def stack(self, media: Sequence[Pixels], plan: Plan) -> Tensor:
        """Pictures (S, S, 3) to one tensor (B, S, S, 3) uint8 on the device.

        No torch operator that would use threads runs here: a second pool of OpenMP threads in the
        process makes libgomp stop spinning, and a lone forward 1.7 times slower on two cores.
        """
        side = plan.image_size
        for pixels in media:
            if pixels.shape != (side, side, 3):
                raise RunFailed(f"expected a picture of {side}x{side} pixels, got {pixels.shape}")
        return torch.from_numpy(np.stack(media)).to(self.device, non_blocking=True)

    def _normalise(self, batch: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 to (B, 3, S, S) in the model's range and precision."""
        return torch.addcmul(self._shift, batch.permute(0, 3, 1, 2).float(), self._scale).to(self.dtype)

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a row; a row whose scores are not finite fails alone."""
        out = self.model(self._normalise(batch), self.steps(plan))
        logits = out.logits.float()
        scores = (logits.softmax(-1) if self.model.geometry.classes else logits).cpu().numpy()
        layers = out.exit_layer.tolist()
        cost = {layer: self._gflops(plan, layer) for layer in set(layers)}
        rows = zip(scores, out.tokens.tolist(), layers, strict=True)
        return [_result(row, tokens, layer, cost[layer]) for row, tokens, layer in rows]

    def kept_until(self, batch: Tensor, plan: Plan) -> NDArray[np.int64]:
        """What was looked at: blocks each patch went through as a token of its own, (B, P)."""
        return kept_until(self.model, self._normalise(batch), self.steps(plan))

    def _cost(self, plan: Plan, depth: int) -> float:
        return rung(self.model, replace(plan, depth=depth), None).gflops


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
    if plan.exit is not None and not len(model.exit_heads):
        raise BadPlan(f"{plan.variant} has no exit heads, so exit:{plan.exit} cannot be served")
    if plan.heads is not None and plan.heads > g.heads:
        raise BadPlan(f"{plan.variant} has {g.heads} heads; heads:{plan.heads} is more")
    heads = 0 if plan.heads in (None, g.heads) else plan.heads
    rule = None if plan.exit is None else exits.create(plan.exit)
    return Steps(reduction.create(plan.reducer, model), plan.depth or g.depth, rule, heads)


def rung(model: ElasticViT, plan: Plan, quality: float | None) -> Rung:
    """What a plan costs on this trunk when no sample leaves early."""
    g = model.geometry
    patches = g.patches(plan.image_size) + g.prefix
    concrete = steps(model, plan)
    after = concrete.reducer.after(patches, g.prefix, concrete.depth)
    gflops = gmacs(g, plan.image_size, after, concrete.reducer.place, concrete.heads)
    return Rung(plan, gflops, after[-1], quality)


def describe(checkpoint: Checkpoint, full: Plan) -> ModelCard:
    """The card of a loaded model; its ladder is the measured one, or the standard rungs unmeasured."""
    model = checkpoint.model
    measured = {Plan.parse(text, full).steps: quality for text, quality in checkpoint.qualities.items()}
    names = list(measured) or (list(STANDARD_RUNGS) if model.geometry.class_token else [])
    plans = [Plan.parse(name, full) for name in names if name != "full"]
    rungs = [rung(model, plan, measured.get(plan.steps)) for plan in plans]
    ladder = (*sorted(rungs, key=lambda r: r.gflops), rung(model, full, 1.0))
    return ModelCard(
        name=checkpoint.name,
        description=checkpoint.description,
        full=full,
        labels=checkpoint.labels or tuple(f"class {i}" for i in range(model.geometry.classes)),
        parameters=sum(p.numel() for p in model.parameters()),
        input=checkpoint.input,
        ladder=ladder,
        licence=checkpoint.licence,
        source=checkpoint.source,
    )
