"""Model cards: what the rest of the system knows about a model without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from foveate.core.errors import BadPlan
from foveate.core.nearest_names import did_you_mean
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement

CropMode = Literal["center", "squash"]
Task = Literal["classify", "segment", "embed", "clicks", "text", "chat"]
INTERNAL_TASKS: tuple[Task, ...] = ("clicks", "text")
"""Tasks without a route of their own: such a model works for another one."""
CHAT_ROUTE = "/v1/chat/completions"
"""The route of task `chat`, whose requests and answers are those of OpenAI's API."""
Interpolation = Literal["bilinear", "bicubic"]


def route_of(task: Task) -> str:
    """The path of a task's route."""
    return CHAT_ROUTE if task == "chat" else f"/{task}"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an image becomes the model's square input: it is resized, and the middle of it is cropped."""

    crop_pct: float = 1.0
    """Side of the crop over the shorter side of the resized image, in 0..1."""
    crop_mode: CropMode = "center"
    """center: keep the aspect ratio. squash: resize both sides to the same length."""
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True, slots=True)
class Rung:
    """One plan of a ladder, with its measured cost and quality."""

    plan: Plan
    gflops: float
    """Billions of multiply-adds for one image."""
    tokens: int
    """Tokens left after the last block, prefix tokens included."""
    quality: float | None
    """Accuracy relative to full, measured on the profiling set, in 0..1; None if never measured."""
    latency_s: Mapping[int, float] | None = None
    """Seconds of a batch by its size, measured on this device; None if never measured here. Of a
    vision-language model up to the first tokens of the answers."""
    chat: ChatMeasurement | None = None
    """Kinds of questions and stages of a vision-language model; None for others, and if never measured."""

    @property
    def worst_quality(self) -> float | None:
        """What the kind of question that suffers most keeps of full, in 0..1; None if never measured."""
        return self.chat.worst_quality if self.chat else None


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """How a model that makes embeddings classifies images by texts that describe the classes.

    The score of a class is `scale` times the cosine similarity of image and text, plus `bias`.
    """

    text_model: str
    """Name of the served model that makes the embeddings of texts."""
    weights: str
    """Digest of the text model and its tokenizer."""
    template: str
    """The text of a class, with {} in the place of its label."""
    scale: float
    bias: float = 0.0
    activation: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: the classes share one probability (CLIP). sigmoid: each class has its own (SigLIP)."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Name, shape and ladder of a served model."""

    name: str
    description: str
    full: Plan
    """The plan that spends full compute."""
    labels: tuple[str, ...]
    """Class names; empty for a model that returns embeddings."""
    parameters: int
    """Number of parameters."""
    input: InputSpec | None
    """None for a model that takes the request's bytes undecoded."""
    ladder: tuple[Rung, ...]
    """Cheapest first; the last is full."""
    licence: str = ""
    source: str = ""
    """Where the weights come from."""
    task: Task = "classify"
    """classify: classes of an image. segment: a class for each pixel. embed: an embedding of an image.
    clicks: the object at points. text: an embedding of a text. chat: answers to questions about images."""
    frames: int = 0
    """Frames of a clip under the full plan; 0 for a model that takes images."""
    click_model: str = ""
    """Name of the served model that answers point prompts from this model's features; empty for none."""
    weights: str = ""
    """Digest of everything that decides the answers; empty if unknown, and then answers are not cached."""
    trunk: str = ""
    """Digest of the trunk, its classifier and the normalisation of pixels: models with the same digest
    compute the same features."""
    clip_model: str = ""
    """Name of the served model that takes clips for this one; empty for none."""
    zero_shot: ZeroShot | None = None
    """How a model that makes embeddings classifies by labels; None for one without a text tower."""

    def plan(self, text: str) -> Plan:
        """Parse a plan, complete or relative to full. Raises BadPlan for a plan of another model."""
        try:
            plan = Plan.parse(text, self.full)
        except BadPlan:
            if text in self.variants:
                side = max(rung.plan.image_size for rung in self.ladder if rung.plan.variant == text)
                raise BadPlan(f"a plan names an image size too, as in {text}@{side}, not {text!r}") from None
            raise
        if plan.variant not in self.variants:
            known = f"; it has {', '.join(sorted(self.variants))}"
            hint = did_you_mean(plan.variant, self.variants) or known
            raise BadPlan(f"{plan.variant} is not a variant of {self.name}{hint}")
        return plan

    @property
    def variants(self) -> frozenset[str]:
        """Names of the variants in the ladder: this model and its siblings."""
        return frozenset(rung.plan.variant for rung in self.ladder)

    @property
    def input_side(self) -> int:
        """Side in pixels to which media are decoded: the image size of full, or of a larger rung."""
        return max([self.full.image_size, *(rung.plan.image_size for rung in self.ladder)])

    def rung(self, plan: Plan) -> Rung | None:
        """The ladder's entry for a plan of any precision; None if the plan was never measured."""
        name = plan.relative_to(self.full)
        return next((rung for rung in self.ladder if rung.plan.relative_to(self.full) == name), None)

    def quality_of(self, plan: Plan) -> float | None:
        """Measured quality of a plan, in 0..1; None if it was never measured."""
        rung = self.rung(plan)
        return None if rung is None else rung.quality
