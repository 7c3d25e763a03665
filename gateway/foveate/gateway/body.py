"""Read a request's body and extract the media bytes: raw, multipart or JSON, within the admission limits."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from foveate.core.errors import BadRequest, ClientGone, UnsupportedMedia
from foveate.gateway.limits import Permit
from foveate.gateway.media.image import decode_base64

RAW_TYPES = ("application/octet-stream", "binary/octet-stream", "")
MAX_JSON_TOKENS = 1000
"""Objects, arrays and commas in a JSON body at most."""


class InMemoryParser(MultiPartParser):
    """A multipart parser that never writes to disk: the admission limits bound the body already."""

    spool_max_size = 2**62


def parse_length(content_length: str) -> int:
    """The value of the header content-length. Raises BadRequest where it is not a whole number."""
    if not (content_length.isascii() and content_length.isdecimal() and len(content_length) < 20):
        raise BadRequest("content-length must be a whole number of bytes")
    return int(content_length)


async def read_body(request: Request, content_length: str, permit: Permit) -> bytes:
    """The whole body. A body that `content_length` says is too large is refused before it is read.

    Only bytes that have arrived count against the limit of all requests together. Otherwise a few idle
    connections could fill it. Raises BadRequest, BodyTooLarge, Overloaded and ClientGone.
    """
    permit.check(parse_length(content_length))
    chunks: list[bytes] = []
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            permit.reserve(total)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone("the client closed the connection while sending its body") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def media_type(content_type: str) -> str:
    """The content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def check_type(kind: str) -> None:
    """Raises UnsupportedMedia, before the body is read, for a content type that no route accepts."""
    if kind.startswith(("image/", "video/")):
        return
    if kind in (*RAW_TYPES, "multipart/form-data", "application/json"):
        return
    if kind == "application/x-www-form-urlencoded":
        raise UnsupportedMedia("send the image under its own type, as in -H 'content-type: image/jpeg'")
    raise UnsupportedMedia(
        f"content-type {kind[:60]} is not supported; send image/*, video/*, multipart/form-data or JSON"
    )


async def from_multipart(content_type: str, body: bytes) -> bytes:
    """The bytes of the field `file`. Raises BadRequest."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # Only the boundary of the content type is passed on: with a charset chosen by the client, names would be
    # decoded by any codec of Python, and some of those take quadratic time.
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="' + boundary + b'"')])
    parser = InMemoryParser(headers, stream(), max_files=4, max_fields=16, max_part_size=4096)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError):
        raise BadRequest("the multipart body does not parse") from None
    field = form.get("file")
    try:
        if not isinstance(field, UploadFile):
            raise BadRequest("multipart requests carry the image in a file field named 'file'")
        return await field.read()
    finally:
        await form.close()


def from_json(body: bytes) -> bytes:
    """The bytes of the key `data`, which is base64. Slow for large bodies: call it off the event loop."""
    return decode_data(json_fields(body))


def json_fields(body: bytes) -> dict[str, Any]:
    """The keys of a JSON body, with text under `data`. As slow as `from_json`. Raises BadRequest."""
    # The parser holds the interpreter lock while it runs. Base64 contains none of these characters, so a body
    # with many of them is made to be slow.
    if sum(map(body.count, (b"{", b"[", b","))) > MAX_JSON_TOKENS:
        raise BadRequest(f"the JSON body has over {MAX_JSON_TOKENS} objects, arrays and commas")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise BadRequest('JSON requests are an object, as in {"data": "<base64>"}')
    if "data" not in fields and "url" in fields:
        raise BadRequest("this server does not fetch URLs; send the image itself, as base64 in 'data'")
    if not isinstance(fields.get("data"), str):
        raise BadRequest("JSON requests carry the image as base64 text in 'data'")
    return fields


def decode_data(fields: Mapping[str, Any]) -> bytes:
    """The bytes of the key `data`. Raises BadRequest where it is not base64."""
    return decode_base64(fields["data"])
