"""data: URLs (RFC 2397): media inside the URL itself, in base64 or percent-encoded."""

import binascii
import re
from urllib.parse import unquote_to_bytes

from foveate.core.errors import BadRequest

_HEAD = re.compile(r"data:([^,]{0,256}),", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"([a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+)?(;[^;,]*)*", re.IGNORECASE)
_BASE64 = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


def is_data_url(url: str) -> bool:
    """Whether the scheme is data."""
    return url[:5].lower() == "data:"


def decode_data_url(url: str) -> bytes:
    """The bytes in a data: URL. Its media type is optional, and their first bytes decide.

    Slow for large media: call it off the event loop. Raises BadRequest; base64 is of the standard alphabet,
    with padding and without white space (RFC 4648, section 4).
    """
    head = _HEAD.match(url)
    if head is None or not _MEDIA_TYPE.fullmatch(head[1]):
        raise BadRequest("the data: URL has no valid head, as in data:image/png;base64,...")
    try:
        body = url[head.end() :].encode("ascii")
    except UnicodeEncodeError:
        raise BadRequest("the data: URL holds characters that are not ASCII") from None
    if b"%" in body:
        if _BAD_ESCAPE.search(body.decode("ascii")):
            raise BadRequest("the data: URL holds a % without two hexadecimal digits after it")
        body = unquote_to_bytes(body)
    if not _BASE64.search(head[1]):
        return body
    try:
        return binascii.a2b_base64(body, strict_mode=True)
    except binascii.Error:
        raise BadRequest("the data: URL holds no valid base64 (standard alphabet, with padding)") from None
