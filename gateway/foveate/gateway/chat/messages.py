"""The messages of a request: turns with texts and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foveate.core.chat import ImagePart, Part, Role, Turn
from foveate.core.errors import BadRequest
from foveate.gateway.chat.fields import (
    read_choice,
    read_closed_object,
    read_items,
    read_object,
    read_text,
    shown,
)

Detail = Literal["low", "auto", "high"]
DETAILS: tuple[Detail, ...] = ("low", "auto", "high")
"""In increasing order: of several pictures, the highest one decides."""
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
EMPTY_FIELDS = ("name", "refusal", "annotations", "audio", "function_call", "tool_calls")
"""Fields of messages that may be null or an empty list, as in an answer that a client sends back."""
PARSED = "parsed"
"""What the official client adds to an answer under a JSON schema. It repeats the content, which is read."""
OTHER_PARTS = ("input_audio", "file", "video_url", "refusal")
"""Types of parts that OpenAI's API or other servers have."""


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Where the bytes of a picture come from."""

    url: str
    """A data URL, or one to fetch."""
    detail: Detail
    where: str
    """The path of its part in the request."""


@dataclass(frozen=True, slots=True)
class Messages:
    """A whole chat."""

    turns: tuple[Turn, ...]
    pictures: tuple[PictureSource, ...]
    """In the order of the `ImagePart`s of the turns."""

    @property
    def detail(self) -> Detail:
        """The highest detail of the pictures; auto without pictures."""
        return max((picture.detail for picture in self.pictures), key=DETAILS.index, default="auto")


def read_messages(value: Any, max_pictures: int, max_text_bytes: int) -> Messages:
    """The chat in `messages`. Raises BadRequest.

    max_text_bytes: of all texts together, in UTF-8.
    """
    turns: list[Turn] = []
    pictures: list[PictureSource] = []
    size = 0
    for where, message in read_items(value, "messages"):
        turn, sources = _read_message(message, where)
        turns.append(turn)
        pictures += sources
        size += sum(len(part.encode()) for part in turn.parts if isinstance(part, str))
        if len(pictures) > max_pictures:
            raise BadRequest(f"the chat has over {max_pictures} pictures, the server's limit", "messages")
        if size > max_text_bytes:
            raise BadRequest(
                f"the texts of the chat have over {max_text_bytes} bytes, the server's limit", "messages"
            )
    if not turns:
        raise BadRequest("messages is empty; send at least one message of the user", "messages")
    last = f"messages[{len(turns) - 1}]"
    if turns[-1].role != "user":
        raise BadRequest(f"{last}: the last message must be one of the user", f"{last}.role")
    if not any(isinstance(part, str) and part.strip() for part in turns[-1].parts):
        raise BadRequest(f"{last} has no text; ask something about its pictures", f"{last}.content")
    return Messages(tuple(turns), tuple(pictures))


def _read_message(value: Any, where: str) -> tuple[Turn, Sequence[PictureSource]]:
    role = _read_role(read_object(value, where), where)
    repeats = (PARSED,) if role == "assistant" else ()
    message = read_closed_object(value, where, ("role", "content", *EMPTY_FIELDS, *repeats))
    for name in EMPTY_FIELDS:
        if message.get(name) not in (None, []):
            raise BadRequest(f"{where}.{name} is not supported; remove it", f"{where}.{name}")
    content, path = message.get("content"), f"{where}.content"
    if content is None:
        raise BadRequest(f"{path} is missing; send text, or a list of parts", path)
    if isinstance(content, str):
        parts: Sequence[Part] = (read_text(content, path),)
        if not content.strip() and role != "assistant":
            raise BadRequest(f"{path} is empty", path)
        return Turn(role, parts), ()
    read = [_read_part(part, place, role) for place, part in read_items(content, path)]
    if not read:
        raise BadRequest(f"{path} is empty; send text, or a list of parts", path)
    parts = tuple(ImagePart() if isinstance(part, PictureSource) else part for part in read)
    if all(isinstance(part, str) and not part.strip() for part in parts):
        raise BadRequest(f"{path} has no text", path)
    return Turn(role, parts), [part for part in read if isinstance(part, PictureSource)]


def _read_role(message: Mapping[str, Any], where: str) -> Role:
    role, path = message.get("role"), f"{where}.role"
    if role in ("tool", "function"):
        raise BadRequest(f"{path} is {role!r}: tools are not supported", path)
    return ROLES[read_choice(role, path, tuple(ROLES))]


def _read_part(value: Any, where: str, role: Role) -> str | PictureSource:
    part = read_object(value, where)
    kind, path = part.get("type"), f"{where}.type"
    if kind == "text":
        return read_text(read_closed_object(value, where, ("type", "text")).get("text"), f"{where}.text")
    if kind != "image_url":
        known = "is not supported" if kind in OTHER_PARTS else "is unknown"
        raise BadRequest(f"{path} {shown(kind)} {known}; the types are text and image_url", path)
    if role != "user":
        raise BadRequest(f"{where}: only messages of the user may have pictures, not of the {role}", where)
    read_closed_object(value, where, ("type", "image_url"))
    where = f"{where}.image_url"
    if isinstance(part.get("image_url"), str):
        raise BadRequest(f'{where} must be an object, as in {{"url": "data:image/png;base64,..."}}', where)
    source = read_closed_object(part.get("image_url"), where, ("url", "detail"))
    url, detail = read_text(source.get("url"), f"{where}.url"), source.get("detail")
    if not url.strip():
        raise BadRequest(f"{where}.url is empty", f"{where}.url")
    chosen = "auto" if detail is None else read_choice(detail, f"{where}.detail", DETAILS)
    return PictureSource(url, next(each for each in DETAILS if each == chosen), where)
