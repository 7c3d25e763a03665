"""POST /embed: an image in, its embedding out."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import ClassVar

from foveate.core.model import ModelCard, Task
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.options import OptionValues, ReadOption, flag_option
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.routes.video_input import VideoInput, image_expected
from foveate.gateway.schemas.embedding import image_embedding
from foveate.gateway.schemas.response import CacheableResponse
from foveate.gateway.spool import Medium


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Options of an embedding."""

    normalize: bool
    """The embedding has length 1, as the embeddings of other servers and APIs have by default."""


class EmbedRoute(TaskRoute[EmbedOptions]):
    """The route of task `embed`."""

    task: Task = "embed"
    own_options: ClassVar[Mapping[str, ReadOption]] = {"normalize": flag_option("normalize")}

    def __init__(self, services: RouteServices) -> None:
        super().__init__(services)
        self.image_input = ImageInput(self.decoding, self.settings, self.meters)
        self.video_input = VideoInput(self.decoding, self.settings, self.meters)

    def choose_model(
        self, name: str | None, video: bool, options: Container[str], complete: bool
    ) -> ModelCard:
        """As on other routes. Raises UnsupportedMedia for a clip, before its body is read."""
        card = self.models.by_name(name, video)
        if video:
            raise image_expected(card)
        return card

    def options(self, values: OptionValues, headers: Mapping[str, str], card: ModelCard) -> EmbedOptions:
        """The options of an embedding."""
        return EmbedOptions(values.get("normalize", False))

    async def work(self, context: RequestContext[EmbedOptions], data: Medium) -> CacheableResponse:
        """Reserve, decode, run. Raises FoveateError; UnsupportedMedia for a clip."""
        image = await self.video_input.check_image(context.card, data)
        self.admission.reserve(context)
        pixels, decode_s = await self.image_input.decode(context, image)
        outcome = await self.admission.submit(context, pixels)
        served = complete(self.meters, context, [outcome], decode_s)
        return image_embedding(served, context.options.normalize)
