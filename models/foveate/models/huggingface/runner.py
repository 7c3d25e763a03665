"""The base of the runners of transformers' models: checks plans, adapts forwards and counts their cost."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile
from foveate.models.huggingface.axes import Changes, PlanAxes, changed, check
from foveate.models.huggingface.fetch import Pretrained
from foveate.models.runners.base import BaseRunner, fingerprint
from foveate.models.runners.describe import profiled_ladder
from foveate.models.runners.forward_cost import count, skeleton
from foveate.models.weights.timm_config import sentence

MAX_BATCH = {"cpu": 4, "cuda": 16}
"""The default limit of items per batch. It is lower than the trunk's, since some of these models give 150
scores per pixel."""
DEFAULT_MAX_BATCH = 4
"""The limit on any other device type."""
INPUT_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What models of transformers raise for inputs that they cannot run."""


class PretrainedRunner(BaseRunner, ABC):
    """One model of transformers on one device.

    Raises SetupError for a model that cannot run or whose output cannot be read.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        axes: PlanAxes,
        frames: int = 0,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        """axes: the plans it supports; frames: of a clip, 0 for images; max_batch: 0 for the default."""
        pixels = pretrained.preprocessing
        limit = max_batch or MAX_BATCH.get(torch.device(device).type, DEFAULT_MAX_BATCH)
        super().__init__(precision, device, limit, pixels.mean, pixels.std, frames)
        self.pretrained, self.axes = pretrained, axes
        self.model = pretrained.model.to(self.device, self.dtype).eval()
        self.full = Plan(pretrained.name, pixels.side, precision)
        self._skeleton = skeleton(self.model)
        self._changes = lru_cache(maxsize=64)(self._changes_of)
        self.gflops = lru_cache(maxsize=1024)(self._cost)
        """Billions of multiply-adds of an item under a plan."""
        full = Rung(self.full, self.gflops(self.full), self.tokens(self.full), 1.0)
        self.card = ModelCard(
            name=pretrained.name,
            description=pretrained.description,
            full=self.full,
            labels=pretrained.labels,
            parameters=sum(p.numel() for p in self.model.parameters()),
            input=pixels.input,
            ladder=profiled_ladder(profile, self.full) if profile else (full,),
            licence=pretrained.licence,
            source=pretrained.source,
            task=pretrained.task,
            frames=frames,
            weights=fingerprint(self.model, repr((pixels.mean, pixels.std))),
        )

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        check(plan, self.full, self.axes, self.frames)

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per item. An item whose scores are not finite fails alone."""
        return self.results(self._forward(self.model, self.pixels(batch, plan), plan), plan)

    @abstractmethod
    def candidates(self) -> tuple[Plan, ...]:
        """Plans worth measuring, full first."""

    @abstractmethod
    def pixels(self, batch: Tensor, plan: Plan) -> Tensor:
        """A stacked batch as the model's input under the plan."""

    @abstractmethod
    def results(self, out: Any, plan: Plan) -> Sequence[Result | Exception]:
        """The model's output as one result per item."""

    @abstractmethod
    def accepts(self, out: Any) -> bool:
        """Whether `results` can read the output."""

    @abstractmethod
    def shape(self, plan: Plan) -> tuple[int, ...]:
        """The shape of one item's pixels as the model takes them."""

    @abstractmethod
    def tokens(self, plan: Plan) -> int:
        """Tokens of one item at the end."""

    @abstractmethod
    def changes(self, model: Any, plan: Plan) -> Changes:
        """The attributes that a plan changes. model: on any device. Empty where it runs as it was saved."""

    def _changes_of(self, plan: Plan) -> Changes:
        return self.changes(self.model, plan)

    def _forward(self, model: Any, pixels: Tensor, plan: Plan) -> Any:
        with changed(self._changes(plan) if model is self.model else self.changes(model, plan)):
            return model(pixels)

    def _cost(self, plan: Plan) -> float:
        """Billions of multiply-adds of an item. Raises SetupError for an output that cannot be read."""

        def forward(model: Any, pixels: Tensor) -> Any:
            return self._forward(model, pixels, plan)

        try:
            empty = torch.empty(1, *self.shape(plan), dtype=self.dtype, device="meta")
            gflops, out = count(self._skeleton, empty, forward)
        except INPUT_ERRORS:
            # Some models read values of their input, so that they do not run on the meta device.
            gflops, out = self._count_on_device(plan)
        if not self.accepts(out):
            raise SetupError(f"the output of {self.full.variant} cannot be read: it has an unknown form")
        return gflops

    def _count_on_device(self, plan: Plan) -> tuple[float, Any]:
        """As `_cost`, with the model itself in place of its copy without data; the output too."""
        blank = torch.zeros(1, *self.shape(plan), dtype=self.dtype, device=self.device)
        try:
            return count(self.model, blank, lambda model, pixels: self._forward(model, pixels, plan))
        except INPUT_ERRORS as error:
            raise SetupError(f"transformers cannot run {plan}: {sentence(error)}") from error
