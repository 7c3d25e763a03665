"""Messages become turns and pictures. The table of refused ones is in test_request."""

import json
from typing import Any

from foveate.core.chat import ImagePart
from foveate.gateway.body_formats.json_body import parse_members
from foveate.gateway.chat.messages import Messages, read_messages


def read(*messages: Any, pictures: int = 9, text: int = 99) -> Messages:
    ((_, value),) = parse_members(json.dumps({"messages": messages}).encode())
    return read_messages(value, pictures, text)


def test_content_is_text_or_parts() -> None:
    url = {"url": "data:,x", "detail": "low"}
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": url}]
    chat = read({"role": "system", "content": "s"}, {"role": "user", "content": parts})
    assert [(turn.role, turn.parts) for turn in chat.turns] == [
        ("system", ("s",)), ("user", ("a", ImagePart())),
    ]  # fmt: skip
    (picture,) = chat.pictures
    assert (picture.url, picture.detail) == ("data:,x", "low")
    assert picture.where == "messages[1].content[1].image_url"


def test_limits_are_met_exactly() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,x"}}
    text = {"type": "text", "text": "é" * 5}
    chat = read({"role": "user", "content": [part, part, text]}, pictures=2, text=10)
    assert len(chat.pictures) == 2


def test_text_without_pictures_has_no_detail() -> None:
    assert read({"role": "user", "content": "x"}).detail == "auto"
