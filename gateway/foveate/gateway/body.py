"""The request's body to the media bytes in it: raw, multipart or JSON, within the door's bounds."""

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

RAW = ("application/octet-stream", "binary/octet-stream", "")
MAX_JSON_PIECES = 1000


class InMemoryParser(MultiPartParser):
    """Never spools to disk: the door has bounded the body already."""

    spool_max_size = 2**62


async def read_body(request: Request, announced: str, visit: Permit) -> bytes:
    """The whole body. What is `announced` too large is refused before a byte of it is read.

    Only what has arrived counts against the door, or a few idle connections could fill it.
    """
    if not (announced.isascii() and announced.isdecimal() and len(announced) < 20):
        raise BadRequest("content-length must be a whole number")
    visit.check(int(announced))
    chunks: list[bytes] = []
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            visit.hold(total)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone("the client left while sending its body") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def media_type(content_type: str) -> str:
    """The content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def check_type(kind: str) -> None:
    """Raises UnsupportedMedia, before the body is read, for a type that no route here takes."""
    if kind.startswith(("image/", "video/")) or kind in (*RAW, "multipart/form-data", "application/json"):
        return
    if kind == "application/x-www-form-urlencoded":
        raise UnsupportedMedia("send the picture under its own type, as in -H 'content-type: image/jpeg'")
    raise UnsupportedMedia(
        f"{kind[:60]} is not served here; send image/*, video/*, multipart/form-data or JSON"
    )


async def from_multipart(content_type: str, body: bytes) -> bytes:
    """The bytes of the field `file`."""

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    # Of the content type only the boundary goes on: under a charset of the client's choosing, names
    # would be decoded by any codec Python has, and some of those take quadratic time.
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="' + boundary + b'"')])
    parser = InMemoryParser(headers, once(), max_files=4, max_fields=16, max_part_size=4096)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError):
        raise BadRequest("the multipart body does not parse") from None
    field = form.get("file")
    try:
        if not isinstance(field, UploadFile):
            raise BadRequest("multipart requests carry the picture in a file field named 'file'")
        return await field.read()
    finally:
        await form.close()


def from_json(body: bytes) -> bytes:
    """The bytes behind `data`, which is base64. Slow for large bodies: call it off the event loop."""
    return data_of(json_fields(body))


def json_fields(body: bytes) -> dict[str, Any]:
    """A JSON body's keys, `data` text among them. As slow as `from_json`."""
    # The parser holds the interpreter while it runs, and base64 contains none of these: many of them
    # are a body made to be slow.
    if sum(map(body.count, (b"{", b"[", b","))) > MAX_JSON_PIECES:
        raise BadRequest("the JSON has more parts than a request needs")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise BadRequest('JSON requests are an object, as in {"data": "<base64>"}')
    if "data" not in fields and "url" in fields:
        raise BadRequest("this server does not fetch URLs; send the picture itself, base64 in 'data'")
    if not isinstance(fields.get("data"), str):
        raise BadRequest("JSON requests carry the picture as base64 text in 'data'")
    return fields


def data_of(fields: Mapping[str, Any]) -> bytes:
    return decode_base64(fields["data"])
