"""What the runners of transformers' models share: plans checked, forwards adapted, costs counted."""

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
from foveate.models.huggingface.axes import Axes, Changes, check, held
from foveate.models.huggingface.cost import count, skeleton
from foveate.models.huggingface.fetch import Pretrained
from foveate.models.runners.base import Base, fingerprint
from foveate.models.runners.describe import profiled
from foveate.models.weights.timm_models import sentence

MAX_BATCH = {"cpu": 4, "cuda": 16}
"""Smaller than of the trunk: some give 150 scores for every single pixel."""


ODD = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What models raise where they cannot run on such an input."""


class PretrainedRunner(Base, ABC):
    """One model of transformers on one device. Raises SetupError for one that cannot run or be read."""

    def __init__(
        self,
        pretrained: Pretrained,
        axes: Axes,
        frames: int = 0,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        pixels = pretrained.prepared
        most = max_batch or MAX_BATCH.get(torch.device(device).type, 4)
        super().__init__(precision, device, most, pixels.mean, pixels.std, frames)
        self.pretrained, self.axes = pretrained, axes
        self.model = pretrained.model.to(self.device, self.dtype).eval()
        self.full = Plan(pretrained.name, pixels.side, precision)
        self._skeleton = skeleton(self.model)
        self._changes = lru_cache(maxsize=64)(self._changes_of)
        self.gflops = lru_cache(maxsize=1024)(self._cost)
        full = Rung(self.full, self.gflops(self.full), self.tokens(self.full), 1.0)
        self.card = ModelCard(
            name=pretrained.name,
            description=pretrained.description,
            full=self.full,
            labels=pretrained.labels,
            parameters=sum(p.numel() for p in self.model.parameters()),
            input=pixels.input,
            ladder=profiled(profile, self.full) if profile else (full,),
            licence=pretrained.licence,
            source=pretrained.source,
            task=pretrained.task,
            frames=frames,
            weights=fingerprint(self.model, repr((pixels.mean, pixels.std))),
        )

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model cannot run the plan."""
        check(plan, self.full, self.axes, self.frames)

    @torch.inference_mode()
    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result a row; a row whose scores are not finite fails alone."""
        return self.results(self._forward(self.model, self.pixels(batch, plan), plan), plan)

    @abstractmethod
    def candidates(self) -> tuple[Plan, ...]:
        """Plans worth measuring, full first."""

    @abstractmethod
    def pixels(self, batch: Tensor, plan: Plan) -> Tensor:
        """What was stacked, as the model takes it under the plan."""

    @abstractmethod
    def results(self, out: Any, plan: Plan) -> Sequence[Result | Exception]:
        """The model's output row by row."""

    @abstractmethod
    def accepts(self, out: Any) -> bool:
        """Whether `results` can read such an output."""

    @abstractmethod
    def shape(self, plan: Plan) -> tuple[int, ...]:
        """Of one item's pixels."""

    @abstractmethod
    def tokens(self, plan: Plan) -> int:
        """Tokens that are left at the end."""

    @abstractmethod
    def changes(self, model: Any, plan: Plan) -> Changes:
        """What a plan changes about the model, which may be on any device; nothing where it runs as it was
        saved."""

    def _changes_of(self, plan: Plan) -> Changes:
        return self.changes(self.model, plan)

    def _forward(self, model: Any, pixels: Tensor, plan: Plan) -> Any:
        with held(self._changes(plan) if model is self.model else self.changes(model, plan)):
            return model(pixels)

    def _cost(self, plan: Plan) -> float:
        """Billions of multiply-adds of an item."""

        def forward(model: Any, pixels: Tensor) -> Any:
            return self._forward(model, pixels, plan)

        try:
            empty = torch.empty(1, *self.shape(plan), dtype=self.dtype, device="meta")
            found, out = count(self._skeleton, empty, forward)
        except ODD:
            # Not every model runs without data, but for a look at some of it.
            found, out = self._counted(plan)
        if not self.accepts(out):
            raise SetupError(f"the output of {self.full.variant} is not one that can be read here")
        return found

    def _counted(self, plan: Plan) -> tuple[float, Any]:
        """As `_cost`, on the model itself."""
        blank = torch.zeros(1, *self.shape(plan), dtype=self.dtype, device=self.device)
        try:
            return count(self.model, blank, lambda model, pixels: self._forward(model, pixels, plan))
        except ODD as error:
            raise SetupError(f"transformers cannot run {plan}: {sentence(error)}") from error
