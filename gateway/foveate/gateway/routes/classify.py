"""POST /classify: an image or a clip in, its classes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foveate.core.errors import UnsupportedMedia
from foveate.core.model import InputSpec, ModelCard, Task
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.cached_classification import CachedClassifier
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.options import OptionValues, ReadOption, flag_option, read_top_k
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.routes.video_input import VideoInput, center_crop
from foveate.gateway.schemas.image import classification
from foveate.gateway.schemas.response import CacheableResponse
from foveate.gateway.schemas.video import clip_classification
from foveate.gateway.spool import Medium

DEFAULT_TOP_K = 5
"""Classes in an answer to a request that gives no `top_k`."""


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """Options of a classification."""

    top_k: int
    """The largest number of classes in the answer."""
    explain: bool
    """The answer says which patches each stage kept."""


class ClassifyRoute(TaskRoute[ClassifyOptions]):
    """The route of task `classify`."""

    task: Task = "classify"
    own_options: ClassVar[Mapping[str, ReadOption]] = {"top_k": read_top_k, "explain": flag_option("explain")}

    def __init__(self, services: RouteServices) -> None:
        super().__init__(services)
        self.image_input = ImageInput(self.decoding, self.settings, self.meters)
        self.video_input = VideoInput(self.decoding, self.settings, self.meters)
        self.cached_classifier = CachedClassifier(services, self.cards.values())

    def options(self, values: OptionValues, headers: Mapping[str, str], card: ModelCard) -> ClassifyOptions:
        """The options of a classification. Raises BadRequest."""
        return ClassifyOptions(values.get("top_k", DEFAULT_TOP_K), values.get("explain", False))

    async def work(self, context: RequestContext[ClassifyOptions], data: Medium) -> CacheableResponse:
        """Look in the feature cache; else reserve, decode, run. Raises FoveateError."""
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
