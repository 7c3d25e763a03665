"""The described body of a chat takes what the server takes."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from foveate.core.errors import BadRequest
from foveate.core.settings import Settings
from foveate.gateway.chat.request import NEUTRAL, READ, parse_chat
from foveate.gateway.schemas.chat import CHAT_BODY
from tests.unit.gateway.chat.test_request import REFUSED

VALIDATOR = Draft202012Validator(CHAT_BODY)
VALID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_the_description_is_a_schema() -> None:
    Draft202012Validator.check_schema(CHAT_BODY)
    assert set(READ) <= CHAT_BODY["properties"].keys() <= {*READ, *NEUTRAL}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [
            {"type": "text", "text": "x"},
            {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}]}]},
        {"stream": True, "stream_options": {"include_usage": True}, "stop": ["a"], "seed": 7, "n": 1},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"foveate": {"plan": "pool:16", "slo_ms": 5, "may_shorten": True}, "temperature": None},
    ],
)  # fmt: skip
def test_described_bodies_are_accepted(changed: dict[str, Any]) -> None:
    body = VALID | changed
    VALIDATOR.validate(body)
    parse_chat(json.dumps(body).encode(), Settings())


def test_most_refused_bodies_do_not_fit_the_description() -> None:
    """Some rules are no JSON schema: the role of the last message, blank texts, two fields that differ."""
    fitting = [changed for changed, _ in REFUSED if VALIDATOR.is_valid(VALID | changed)]
    assert len(fitting) < len(REFUSED) / 4
    for changed in fitting:
        with pytest.raises(BadRequest):
            parse_chat(json.dumps(VALID | changed).encode(), Settings(chat_pictures=3, chat_text_bytes=1000))
