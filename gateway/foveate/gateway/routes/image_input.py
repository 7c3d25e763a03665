"""Images on the task routes: decoded on threads, off the event loop, to what a model takes."""

from typing import Any

from foveate.core.errors import UnsupportedMedia
from foveate.core.settings import Settings
from foveate.gateway.decoding import Decoding
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.image_tiles import TiledImage, TileSelector, decode_tiles
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.services import Meters


class ImageInput:
    """Decodes an image for the request's model, until the request's deadline."""

    def __init__(self, decoding: Decoding, settings: Settings, meters: Meters) -> None:
        self.decoding, self.settings, self.meters = decoding, settings, meters

    async def decode(self, context: RequestContext[Any], data: bytes) -> tuple[Any, float]:
        """Pixels (S, S, 3) for the model, and the seconds that decoding took.

        A model without an input specification gets the undecoded bytes. Raises FoveateError.
        """
        card, spec = context.card, context.card.input
        if spec is None:
            return data, 0.0
        side, max_pixels = input_side(context), self.settings.max_pixels
        async with deadline_timeout(context.objective.deadline):
            pixels, seconds = await self.decoding.decode_image(
                card.name, data, lambda: decode_image(data, spec, side, max_pixels), max_pixels
            )
        self.meters[card.name].decode.observe(seconds)
        return pixels, seconds

    async def decode_tiles(
        self, context: RequestContext[Any], data: bytes, choose: TileSelector | None = None
    ) -> tuple[TiledImage, float]:
        """The tiles of the image, or only the chosen one, and the seconds that decoding took.

        Raises FoveateError.
        """
        card, spec = context.card, context.card.input
        if spec is None:
            raise UnsupportedMedia(f"{card.name} takes no images")
        side, max_pixels = input_side(context), self.settings.max_pixels
        async with deadline_timeout(context.objective.deadline):
            image, seconds = await self.decoding.decode_image(
                card.name, data, lambda: decode_tiles(data, spec, side, max_pixels, choose), max_pixels
            )
        self.meters[card.name].decode.observe(seconds)
        return image, seconds


def input_side(context: RequestContext[Any]) -> int:
    """The side in pixels to which the media of a request are decoded.

    All requests of a batch have one size, so that it is at least that of the ladder's largest plan; the model
    scales the batch down to the size of the plan that runs.
    """
    return max(context.card.input_side, context.plan.image_size if context.plan else 0)
