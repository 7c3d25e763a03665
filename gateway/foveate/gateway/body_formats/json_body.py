"""JSON bodies: the media as base64 in the key `data`, or their URL in `url`; options in the other keys."""

import json
import re
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import BadRequest
from foveate.gateway.media.image import decode_base64

MAX_JSON_TOKENS = 3000
"""Objects, arrays and commas in a JSON body at most: 1,000 labels, some with commas, fit."""
MAX_JSON_OBJECTS = 300
"""Objects and arrays in a JSON body at most, so that none is nested deeply."""
DATA_NAMES = ("image", "images", "file", "files", "b64", "base64", "image_base64", "content", "inputs")
"""Names under which clients of other servers send the media."""
DATA_URL = re.compile(rb"\s*data:[^,]{0,256};base64,", re.IGNORECASE)
HEAD_CHARACTERS = 256
"""Characters of base64 whose bytes show the type of the media."""


@dataclass(frozen=True, slots=True)
class JsonContent:
    """What a JSON body holds."""

    fields: list[tuple[str, Any]]
    """Names and values of all members beside the media."""
    data: bytes = b""
    """The text in `data`."""
    url: str | None = None
    """The text in `url`, where the media are there and not in `data`."""


class JsonMembers(list[tuple[str, Any]]):
    """The members of a JSON object in their order, repeated names included."""


def read_json(body: bytes) -> JsonContent:
    """The text in `data` or in `url`, and all other members. Raises BadRequest.

    Slow for large bodies: call it off the event loop.
    """
    members = parse_members(body)
    media = [(name, value) for name, value in members if name in ("data", "url")]
    names = {name for name, _ in members}
    if {"data", "url"} <= names:
        raise BadRequest("the JSON object has the keys 'data' and 'url'; send one of them")
    if len(media) > 1:
        raise BadRequest(
            f"the JSON object has the key {media[0][0]!r} twice; send one image or clip a request"
        )
    if misnamed := sorted(names.intersection(DATA_NAMES)):
        raise BadRequest(f"the JSON object has the key {misnamed[0]!r}; send the image or clip in 'data'")
    if not media or not isinstance(media[0][1], str):
        raise BadRequest("JSON requests carry the image as base64 text in 'data', or its URL in 'url'")
    (name, text), others = media[0], [member for member in members if member[0] not in ("data", "url")]
    if name == "url":
        return JsonContent(others, url=text)
    return JsonContent(others, text.encode("utf-8", "replace"))


def parse_members(
    body: bytes,
    max_tokens: int = MAX_JSON_TOKENS,
    max_objects: int = MAX_JSON_OBJECTS,
    example: str = '{"data": "<base64>"}',
) -> JsonMembers:
    """The members of the JSON object that is the body. Raises BadRequest.

    max_tokens, max_objects: objects, arrays and commas at most, and objects and arrays. example: of a body,
    for the error.
    """
    # The parser holds the interpreter lock while it runs. Base64 contains none of these characters, so a body
    # with many of them is made to be slow.
    objects = body.count(b"{") + body.count(b"[")
    if objects + body.count(b",") > max_tokens:
        raise BadRequest(f"the JSON body has over {max_tokens} objects, arrays and commas")
    if objects > max_objects:
        raise BadRequest(f"the JSON body has over {max_objects} objects and arrays")
    if b"\0" in body[:4] or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadRequest("the JSON body is in UTF-16 or UTF-32; send it in UTF-8")
    try:
        # RFC 8259, section 8.1: a parser may ignore a byte order mark.
        members = json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=JsonMembers, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise BadRequest("the JSON body is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise BadRequest("the JSON body is nested too deeply") from None
    except ValueError:
        raise BadRequest("the JSON body has a number with too many digits") from None
    if not isinstance(members, JsonMembers):
        raise BadRequest(f"JSON requests are an object, as in {example}")
    return members


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"the body is not valid JSON: {name} is not a JSON number")


def decode_data(text: bytes) -> bytes:
    """The media in `data`: base64, or a data URL that holds base64. Raises BadRequest.

    Slow for large media: call it off the event loop.
    """
    if re.match(rb"\s*https?://", text):
        raise BadRequest("'data' holds a URL; send it in 'url', or the image itself as base64 in 'data'")
    if re.match(rb"\s*data:", text, re.IGNORECASE) and not DATA_URL.match(text):
        raise BadRequest("'data' holds a data URL that is not base64; send data:image/png;base64,...")
    return decode_base64(text)


def head_of_data(text: bytes) -> bytes:
    """The first bytes of the media in `data`, which show its type; fewer where they are not base64."""
    prefix = DATA_URL.match(text)
    start = prefix.end() if prefix else 0
    head = b"".join(text[start : start + HEAD_CHARACTERS].split())
    try:
        return decode_base64(head[: len(head) // 4 * 4])
    except BadRequest:
        return b""
