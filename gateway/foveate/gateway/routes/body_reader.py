"""The body of a request on the task routes: checked, bounded in bytes and time, spooled if it is a clip."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BadRequest, UnsupportedMedia
from foveate.core.settings import Settings
from foveate.gateway.body import (
    FORM_TYPE,
    RAW_TYPES,
    check_type,
    is_json,
    media_type,
    parse_length,
    read_body,
    without_stalls,
)
from foveate.gateway.body_formats.compression import decompress, read_encoding
from foveate.gateway.body_formats.form import FormParser
from foveate.gateway.body_formats.json_body import head_of_data, read_json
from foveate.gateway.decoding import SMALL_BYTES, Decoding
from foveate.gateway.limits import Permit, SpoolBudget, deadline_timeout
from foveate.gateway.media.video_container import is_clip
from foveate.gateway.spool import Medium, spool_body


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The content of a body."""

    media: Medium
    """The bytes of an image or a clip; a large clip is a file. Empty while they are still at `url`."""
    fields: Sequence[tuple[str, Any]] = ()
    """Names and values of the fields of a form, or of the members of a JSON object, beside the media."""
    encoded: bool = False
    """The media are text in base64, from a JSON object."""
    url: str | None = None
    """Where the media are, if the JSON object has a URL in their place."""

    @property
    def is_video(self) -> bool:
        """Whether the media are a clip, as their first bytes show."""
        if isinstance(self.media, bytes):
            return is_clip(head_of_data(self.media) if self.encoded else self.media)
        return True


class BodyReader:
    """Reads the bodies of requests, within the limits of the settings."""

    def __init__(self, settings: Settings, spool_budget: SpoolBudget, decoding: Decoding) -> None:
        self.settings, self.spool_budget, self.decoding = settings, spool_budget, decoding

    @asynccontextmanager
    async def open(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        kind: str,
        permit: Permit,
        deadline: float | None,
    ) -> AsyncIterator[RequestBody]:
        """The media of the body, and what it holds beside them. A file exists while the context is open.

        headers: names in lower case. kind: the media type in the content type. deadline: monotonic clock
        seconds. Raises FoveateError.
        """
        check_type(kind)
        length, clip = headers.get("content-length", "0"), kind.startswith("video/")
        stream: AsyncIterator[bytes] = http.stream()
        timeout_s = self._timeout_s(length, clip)
        if timeout_s > self.settings.body_timeout_s:
            stream = without_stalls(stream)
        stream = decompressed(stream, http, headers)
        form = FormParser(headers["content-type"]) if kind == FORM_TYPE else None
        async with AsyncExitStack() as stack:
            media: Medium
            async with deadline_timeout(deadline, timeout_s):
                if clip or form or kind in RAW_TYPES:
                    spool = spool_body(stream, length, permit, self.spool_budget, form, clip)
                    media = await stack.enter_async_context(spool)
                else:
                    media = await read_body(stream, length, permit)
            if not media:
                raise BadRequest("the body is empty; send an image or a clip")
            if form:
                yield RequestBody(media, form.fields)
            elif is_json(kind) and isinstance(media, bytes):
                yield await self._json_body(media, deadline)
            else:
                yield RequestBody(media)

    async def read_json_text(
        self, http: HttpRequest, headers: Mapping[str, str], permit: Permit, deadline: float | None
    ) -> bytes:
        """The bytes of a body that is JSON, whatever it holds. Arguments and errors are those of `open`.

        Raises UnsupportedMedia for another content type.
        """
        kind = media_type(headers.get("content-type", ""))
        if not is_json(kind):
            sent = f"content-type {kind[:60]} is not supported" if kind else "the body has no content-type"
            raise UnsupportedMedia(f"{sent}; send JSON with content-type: application/json")
        stream = decompressed(http.stream(), http, headers)
        async with deadline_timeout(deadline, self.settings.body_timeout_s):
            return await read_body(stream, headers.get("content-length", "0"), permit)

    def _timeout_s(self, length: str, clip: bool) -> float:
        """Seconds in which the body must arrive. A longer body than that of an image can only hold a clip."""
        if clip or parse_length(length) > self.settings.max_body_bytes:
            return self.settings.video_body_timeout_s
        return self.settings.body_timeout_s

    async def _json_body(self, text: bytes, deadline: float | None) -> RequestBody:
        async with deadline_timeout(deadline):
            small = len(text) <= SMALL_BYTES
            content = read_json(text) if small else await self.decoding.run(lambda: read_json(text))
        return RequestBody(content.data, content.fields, content.url is None, content.url)


def decompressed(
    stream: AsyncIterator[bytes], http: HttpRequest, headers: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """The body without its content encoding. Raises UnsupportedEncoding, and the errors of `decompress`."""
    if "content-encoding" not in headers:
        return stream
    encoding = read_encoding(http.headers.getlist("content-encoding"))
    return decompress(stream, encoding) if encoding else stream
