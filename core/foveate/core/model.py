"""What the rest of the system knows about a model without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan

CropMode = Literal["center", "squash"]
Task = Literal["classify", "segment", "clicks"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a picture becomes the model's input: resize so that the crop covers `crop_pct` of it, crop."""

    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    """center: the shorter side is resized, the middle is cut out; squash: both sides are resized."""
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True, slots=True)
class Rung:
    """One plan of a ladder, with what it costs and what it is known to be worth."""

    plan: Plan
    gflops: float
    """Billions of multiply-adds."""
    tokens: int
    """Tokens left after the last block, prefix included."""
    quality: float | None
    """Accuracy kept relative to full, measured on the profiling set; None: never measured."""
    latency_s: Mapping[int, float] | None = None
    """Seconds a batch takes by its size, measured on this device; None: never measured here."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Name, shape and ladder of a served model."""

    name: str
    description: str
    full: Plan
    """The plan that spends full compute."""
    labels: tuple[str, ...]
    """Class names; empty where the model answers with features."""
    parameters: int
    input: InputSpec | None
    """None: the model takes the request's bytes as they came, undecoded."""
    ladder: tuple[Rung, ...]
    """Cheapest first; the last is full."""
    licence: str = ""
    source: str = ""
    task: Task = "classify"
    """What it answers: a picture's classes, or each pixel's."""
    frames: int = 0
    """Frames of a clip that full looks at; 0: it takes pictures."""
    click_model: str = ""
    """The model, served beside it, that answers clicks on what it has seen; empty: none does."""
    weights: str = ""
    """A digest of all that its answers rest on; empty: nobody knows whether they would be the same again."""
    trunk: str = ""
    """A digest of the trunk and its classifier: models with the same one see the same in a picture."""
    clip_model: str = ""
    """The model, served beside it, that takes clips in its name; empty: none does."""

    def plan(self, text: str) -> Plan:
        """A plan by name: in full, or what sets it apart from full. Raises BadPlan for another model's."""
        plan = Plan.parse(text, self.full)
        if plan.variant not in self.variants:
            raise BadPlan(f"{plan.variant} is not a variant of {self.name}")
        return plan

    @property
    def variants(self) -> frozenset[str]:
        """Models that answer in this one's name, itself among them: those its ladder has plans of."""
        return frozenset(rung.plan.variant for rung in self.ladder)

    def rung(self, plan: Plan) -> Rung | None:
        """The ladder's entry for a plan, whatever its precision; None where it was never measured."""
        name = plan.relative_to(self.full)
        return next((rung for rung in self.ladder if rung.plan.relative_to(self.full) == name), None)
