"""The runner of opaque networks: (batch, plan) -> results, on one device at one precision."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from foveate.core.errors import BadPlan, SetupError
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models.opaque.checkpoint import OpaqueCheckpoint, OpaqueFamily
from foveate.models.opaque.sizes import INPUT_ERRORS, WithoutNorms
from foveate.models.runners.base import check_model, fingerprint
from foveate.models.runners.classifier import ClassifierRunner, classified
from foveate.models.runners.describe import profiled_ladder
from foveate.models.runners.forward_cost import count, skeleton
from foveate.models.runners.image_plans import parse_certainty
from foveate.models.weights.timm_config import sentence

SQUARE = 32
"""Side in pixels of the square that stands for one token: most such networks reduce images by 32."""


class OpaqueRunner(ClassifierRunner):
    """A network that classifies or embeds images, and its siblings, on one device.

    A plan chooses the variant and the image size. Raises SetupError for a network that does not run, or whose
    output is not one score for each class.
    """

    def __init__(
        self,
        model: OpaqueCheckpoint | OpaqueFamily,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        """max_batch: items per batch, 0 for the device's default; profile: None for unmeasured rungs."""
        family = model if isinstance(model, OpaqueFamily) else OpaqueFamily(model.name, (model,))
        own = family.own
        super().__init__(precision, device, max_batch, own.mean, own.std)
        self.family = {member.name: member for member in family.members}
        """Members by variant."""
        self.models = {name: self._placed(member.model) for name, member in self.family.items()}
        """Networks by variant."""
        self._normalisation = {
            name: self.normalisation(member.mean, member.std) for name, member in self.family.items()
        }
        self.full = Plan(own.name, own.image_size, precision)
        self._skeletons = {name: skeleton(network) for name, network in self.models.items()}
        self.gflops = lru_cache(maxsize=1024)(self._cost)
        """Billions of multiply-adds of an image under a plan without content rungs."""
        ladder = profiled_ladder(profile, self.full) if profile else self._unmeasured_ladder()
        self.content = profile.content if profile else None
        described = [repr(member.table()) for member in family.members]
        self.card = ModelCard(
            name=family.name,
            description=own.description,
            full=self.full,
            labels=own.labels,
            parameters=sum(p.numel() for p in own.model.parameters()),
            input=own.input,
            ladder=ladder,
            licence=own.licence,
            source=own.source,
            task=own.task,
            weights=fingerprint(*self.models.values(), *described, repr(self.content)),
        )

    def _placed(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, self.dtype).eval()

    def _unmeasured_ladder(self) -> tuple[Rung, ...]:
        """Every member at its largest size, without a quality. Full has quality 1, whatever it costs.

        Smaller sizes are left out: to count the cost of each would slow down the start.
        """
        largest = {plan.variant: plan for plan in reversed(self.candidates())}
        plans = [plan for plan in largest.values() if plan != self.full]
        rungs = [Rung(plan, self.gflops(plan), _tokens(plan), None) for plan in plans]
        full = Rung(self.full, self.gflops(self.full), _tokens(self.full), 1.0)
        return (*sorted(rungs, key=lambda rung: rung.gflops), full)

    def candidates(self) -> tuple[Plan, ...]:
        """Plans worth measuring, full first: every size of every member."""
        plans = [
            Plan(name, side, self.full.precision)
            for name, member in self.family.items()
            for side in (member.image_size, *reversed(member.sizes))
            if side <= self.full.image_size
        ]
        return tuple(dict.fromkeys([self.full, *plans]))

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        check_model(plan, self.full, self.family)
        name = self.full.variant
        if plan.content is not None:
            if self.content is None:
                raise BadPlan(f"{name} has no content rungs; foveate profile finds them")
            if replace(plan, content=None) != self.full:
                raise BadPlan(f"content:{plan.content} chooses among whole plans; no other part goes with it")
            parse_certainty(plan)
            return
        if plan.parts != "full":
            raise BadPlan(f"{name} is not an elastic trunk: a plan has an image size, not {plan.parts}")
        member = self.family[plan.variant]
        if plan.image_size not in (member.image_size, *member.sizes):
            sizes = ", ".join(map(str, (*member.sizes, member.image_size)))
            raise BadPlan(f"the image sizes of {plan.variant} are {sizes}, not {plan.image_size}")
        if plan.image_size > self.full.image_size:
            raise BadPlan(f"image sizes of {name} go up to {self.full.image_size}, not {plan.image_size}")

    @torch.inference_mode()
    def run_plan(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per image of a batch (B, S, S, 3) uint8, all under a plan without content rungs."""
        member = self.family[plan.variant]
        scale, shift = self._normalisation[plan.variant]
        images = self.preprocess(batch, plan.image_size, scale, shift)
        out = self.models[plan.variant](images).float()
        if member.labels:
            out = out.sigmoid() if member.multi_label else out.softmax(-1)
        return [classified(row, _tokens(plan), 1, self.gflops(plan)) for row in out.cpu().numpy()]

    def _cost(self, plan: Plan) -> float:
        """Raises SetupError where the network does not run or its output has another shape."""
        shape, classes = (1, 3, plan.image_size, plan.image_size), len(self.family[plan.variant].labels)
        empty = torch.empty(shape, dtype=self.dtype, device="meta")
        try:
            with WithoutNorms():  # whose compute is not counted
                gflops, out = count(self._skeletons[plan.variant], empty, nn.Module.__call__)
        except INPUT_ERRORS:
            gflops, out = self._count_on_device(plan.variant, shape)
        if not isinstance(out, Tensor) or out.ndim != 2 or (classes and out.shape[1] != classes):
            form = f"the shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            expected = f"(1, {classes}), one score for each class" if classes else "(1, D), an embedding"
            raise SetupError(f"{plan.variant} answers one image with {form}, not with {expected}")
        return gflops

    def _count_on_device(self, variant: str, shape: tuple[int, ...]) -> tuple[float, object]:
        """As `_cost`, for networks that read values of their input, so that they need data."""
        blank = torch.zeros(shape, dtype=self.dtype, device=self.device)
        try:
            return count(self.models[variant], blank, nn.Module.__call__)
        except INPUT_ERRORS as error:
            raise SetupError(f"{variant} cannot run: {sentence(error)}") from error


def _tokens(plan: Plan) -> int:
    """Squares of 32 x 32 pixels in the image."""
    return int((-(-plan.image_size // SQUARE)) ** 2)
