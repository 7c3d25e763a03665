"""Bodies in memory: their content types and lengths, and the bytes themselves within the admission limits."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect

from foveate.core.errors import BadRequest, BodyTooSlow, ClientGone, UnsupportedMedia
from foveate.gateway.limits import Permit

RAW_TYPES = ("application/octet-stream", "binary/octet-stream", "")
"""Content types of media whose own type the client does not say."""
FORM_TYPE, JSON_TYPE = "multipart/form-data", "application/json"
STALL_S = 15.0
"""Most seconds between two chunks of a body that may take minutes: mobile networks pause for some."""


def parse_length(content_length: str) -> int:
    """The value of the header content-length. Raises BadRequest where it is not a whole number."""
    if not (content_length.isascii() and content_length.isdecimal() and len(content_length) < 20):
        raise BadRequest("content-length must be a whole number of bytes")
    return int(content_length)


async def read_body(stream: AsyncIterator[bytes], content_length: str, permit: Permit) -> bytes:
    """The whole body. A body that `content_length` says is too large is refused before it is read.

    Only bytes that have arrived count against the limit of all requests together. Otherwise a few idle
    connections could fill it. Raises BadRequest, BodyTooLarge, Overloaded and ClientGone.
    """
    permit.check(parse_length(content_length))
    chunks: list[bytes] = []
    total = 0
    try:
        async for chunk in stream:
            total += len(chunk)
            permit.reserve(total)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone("the client closed the connection while sending its body") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def without_stalls(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of a body that may take minutes. Raises BodyTooSlow if none arrives for STALL_S seconds."""
    chunks = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BodyTooSlow(f"no byte of the body arrived for {STALL_S:g} s") from None
        yield chunk


def media_type(content_type: str) -> str:
    """The content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a media type is JSON, or one of the types with the suffix +json (RFC 6839)."""
    return kind == JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json"))


def holds_options(kind: str) -> bool:
    """Whether bodies of this media type may hold options beside the media."""
    return kind == FORM_TYPE or is_json(kind)


def check_type(kind: str) -> None:
    """Raises UnsupportedMedia, before the body is read, for a content type that no route accepts."""
    if kind.startswith(("image/", "video/")):
        return
    if kind in RAW_TYPES or holds_options(kind):
        return
    if kind == "application/x-www-form-urlencoded":
        raise UnsupportedMedia(
            f"{kind} is not supported; send an image with --data-binary and -H 'content-type: image/jpeg',"
            " or with -F file=@NAME, and JSON with -H 'content-type: application/json'"
        )
    raise UnsupportedMedia(
        f"content-type {kind[:60]} is not supported; send image/*, video/*, multipart/form-data or JSON"
    )
