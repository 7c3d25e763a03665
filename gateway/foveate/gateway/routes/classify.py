"""POST /classify: an image or a clip in, its classes out."""

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foveate.core.errors import BadRequest, UnsupportedMedia
from foveate.core.model import InputSpec, ModelCard, Task
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.cached_classification import CachedClassifier
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.labels import read_labels, read_template
from foveate.gateway.routes.options import OptionValues, ReadOption, flag_option, read_top_k
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.routes.video_input import VideoInput, center_crop
from foveate.gateway.routes.zero_shot import ZeroShotClassifier
from foveate.gateway.schemas.image import classification
from foveate.gateway.schemas.response import CacheableResponse
from foveate.gateway.schemas.video import clip_classification
from foveate.gateway.spool import Medium

DEFAULT_TOP_K = 5
"""Classes in an answer to a request that gives no `top_k`."""
NO_TEXT_TOWER = (
    "labels are for models with a text tower, and none is served; serve a CLIP or SigLIP checkpoint"
)


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """Options of a classification."""

    top_k: int
    """The largest number of classes in the answer."""
    explain: bool
    """The answer says which patches each stage kept."""
    labels: tuple[str, ...] = ()
    """The classes, for a model that embeds images and texts; empty: the model's own."""
    template: str = ""
    """The text around a label, with {} in its place; empty: the model's own."""


class ClassifyRoute(TaskRoute[ClassifyOptions]):
    """The route of task `classify`."""

    task: Task = "classify"
    own_options: ClassVar[Mapping[str, ReadOption]] = {
        "top_k": read_top_k,
        "explain": flag_option("explain"),
        "labels": read_labels,
        "template": read_template,
    }
    list_options: ClassVar[Collection[str]] = ("labels",)

    def __init__(self, services: RouteServices) -> None:
        super().__init__(services)
        self.image_input = ImageInput(self.decoding, self.settings, self.meters)
        self.video_input = VideoInput(self.decoding, self.settings, self.meters)
        self.cached_classifier = CachedClassifier(services, self.models.cards.values())
        self.labelled = next((card for card in self.cards.values() if card.zero_shot), None)
        """The first model with a text tower."""
        self.zero_shot = ZeroShotClassifier(services, self.admission, self.meters, self.image_input)

    def answers_for(self, card: ModelCard) -> bool:
        """Models of the task, and models of embeddings: with a text tower, they classify by labels."""
        return card.task in (self.task, "embed")

    def choose_model(
        self, name: str | None, video: bool, options: Container[str], complete: bool
    ) -> ModelCard:
        """As on other routes; with labels, the default is the first model with a text tower."""
        if name is None:
            # The labels may stand in a body that is not read yet.
            expected = "labels" in options or not (complete or self.models.cards)
            if expected and self.labelled is not None:
                return self.labelled
            if "labels" in options:
                raise BadRequest(NO_TEXT_TOWER)
        elif name in self.cards and name not in self.models.cards:
            return self.cards[name]
        return self.models.by_name(name, video)

    def options(self, values: OptionValues, headers: Mapping[str, str], card: ModelCard) -> ClassifyOptions:
        """The options of a classification. Raises BadRequest."""
        labels, template = values.get("labels", ()), values.get("template", "")
        if labels and card.zero_shot is None:
            own = "is served without a text tower" if card.task == "embed" else "has classes of its own"
            raise BadRequest(f"{card.name} {own}, so it takes no labels; name a CLIP or SigLIP model")
        if not labels and card.task == "embed":
            if card.zero_shot is None:
                raise self.models.other_task(card)
            raise BadRequest(
                f"{card.name} classifies by labels, as in labels=cat,dog; for its embedding, ask /embed"
            )
        if template and not labels:
            raise BadRequest("template is the text around the labels; send labels too, as in labels=cat,dog")
        return ClassifyOptions(
            values.get("top_k", DEFAULT_TOP_K), values.get("explain", False), labels, template
        )

    async def work(self, context: RequestContext[ClassifyOptions], data: Medium) -> CacheableResponse:
        """Look in the feature cache; else reserve, decode, run. Raises FoveateError."""
        if context.options.labels:
            return await self._classify_by_labels(context, data)
        if context.card.input is None:
            if isinstance(data, Path):
                raise UnsupportedMedia(f"{context.card.name} takes no clips")
            self.admission.reserve(context)
            return await self._run(context, data, 0.0)  # the model takes undecoded bytes
        context = self.for_medium(context, await self.video_input.is_video(data))
        if context.card.frames or isinstance(data, Path):
            self.admission.reserve(context)
            return await self._classify_video(context, data)
        options = context.options
        cached = await self.cached_classifier.classify(context, data, options.explain)
        if cached is not None:
            served = complete(self.meters, context, [cached], 0.0, cache="hit")
            return classification(served, options.top_k, False)
        self.admission.reserve(context)
        pixels, decode_s = await self.image_input.decode(context, data)
        return await self._run(context, pixels, decode_s)

    async def _classify_by_labels(
        self, context: RequestContext[ClassifyOptions], data: Medium
    ) -> CacheableResponse:
        options, image = context.options, await self.video_input.check_image(context.card, data)
        served = await self.zero_shot.classify(
            context, image, options.labels, options.template, options.explain
        )
        return classification(served, options.top_k, options.explain)

    async def _run(
        self, context: RequestContext[ClassifyOptions], media: Any, decode_s: float
    ) -> CacheableResponse:
        """Run the model on a decoded image."""
        options = context.options
        outcome = await self.admission.submit(context, media, explain=options.explain)
        served = complete(self.meters, context, [outcome], decode_s)
        return classification(served, options.top_k, options.explain)

    async def _classify_video(
        self, context: RequestContext[ClassifyOptions], data: Medium
    ) -> CacheableResponse:
        spec = context.card.input or InputSpec()
        boxes = center_crop(spec, context.card.full.image_size)
        clip, decode_s = await self.video_input.decode(context, data, boxes)
        outcome = await self.admission.submit(context, clip.pixels[0])
        served = complete(self.meters, context, [outcome], decode_s)
        return clip_classification(served, clip, context.options.top_k, context.options.explain)
