"""The pictures of a chat: fetched or decoded from data URLs, and decoded to what the model takes."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from foveate.core.chat import ChatPicture
from foveate.core.errors import BadRequest
from foveate.gateway.chat.messages import PictureSource
from foveate.gateway.decoding import SMALL_BYTES, Decoding
from foveate.gateway.limits import Permit
from foveate.gateway.media.video_container import is_clip
from foveate.gateway.routes.admission import run_together
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.video_input import image_expected


class ImageFetcher(Protocol):
    """Gives the bytes of an image by its URL."""

    async def fetch_image(self, url: str, permit: Permit, deadline: float | None = None) -> bytes:
        """The image at a URL. permit: of the request, whose limits apply. Raises FoveateError."""
        ...


class ChatPictures:
    """Loads the pictures of chats."""

    def __init__(self, decoding: Decoding, image_input: ImageInput, fetcher: ImageFetcher) -> None:
        self.decoding, self.image_input, self.fetcher = decoding, image_input, fetcher

    async def load(
        self, context: RequestContext[Any], sources: Sequence[PictureSource], permit: Permit
    ) -> list[ChatPicture]:
        """The decoded pictures in their order. At the first failure, the others are given up.

        Raises FoveateError; a BadRequest names the path of the picture.
        """
        return await run_together(self._load(context, source, permit) for source in sources)

    async def _load(self, context: RequestContext[Any], source: PictureSource, permit: Permit) -> ChatPicture:
        try:
            data = await self.fetcher.fetch_image(source.url, permit, context.objective.deadline)
            if context.card.input is not None and is_clip(data):
                raise image_expected(context.card)
            digest = await self._digest(data)
            pixels, _ = await self.image_input.decode(context, data)
        except BadRequest as error:
            error.param = f"{source.where}.url"
            raise
        return ChatPicture(digest, pixels, getattr(pixels, "nbytes", len(pixels)))

    async def _digest(self, data: bytes) -> bytes:
        """SHA-256. Small images are hashed at once: a change of threads would take longer."""
        if len(data) <= SMALL_BYTES:
            return hashlib.sha256(data).digest()
        return await self.decoding.run(lambda: hashlib.sha256(data).digest())
