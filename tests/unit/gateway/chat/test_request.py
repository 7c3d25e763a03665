"""Bodies of chats: what each field means, and a table of refused bodies with the name of the field."""

import json
from typing import Any

import pytest

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.errors import BadRequest
from foveate.core.settings import Settings
from foveate.gateway.chat.request import MAX_JSON_OBJECTS, MAX_JSON_TOKENS, ChatBody, parse_chat

URL = "data:image/png;base64,AAAA"
PICTURE = {"type": "image_url", "image_url": {"url": URL}}
TEXT = {"type": "text", "text": "what is it?"}
QUESTION = {"role": "user", "content": "what is it?"}
SETTINGS = Settings(chat_pictures=3, chat_text_bytes=1000)


def parsed(settings: Settings = SETTINGS, **changed: Any) -> ChatBody:
    text = json.dumps({"model": "m", "messages": [QUESTION]} | changed)
    return parse_chat(text.encode(), settings)


def detailed(*details: str | None) -> dict[str, Any]:
    """A message with a picture of each detail."""
    parts = [
        {"type": "image_url", "image_url": {"url": URL} | ({"detail": detail} if detail else {})}
        for detail in details
    ]
    return {"role": "user", "content": [*parts, TEXT]}


def test_a_short_body_has_the_defaults() -> None:
    body = parsed()
    assert (body.model, body.messages.turns) == ("m", (Turn("user", ("what is it?",)),))
    assert body.options == SamplingOptions(max_tokens=256)
    assert (body.stream, body.include_usage, body.logprobs) == (False, False, False)
    assert not body.objective.headers
    assert not body.objective.may_shorten


def test_every_field_is_read() -> None:
    body = parsed(
        stream=True, stream_options={"include_usage": True, "include_obfuscation": False},
        max_completion_tokens=9, temperature=1, top_p=0.5, seed=-7, stop=["a", "b"], logprobs=True,
        top_logprobs=3, response_format={"type": "json_object"},
        foveate={"plan": "pool:16", "slo_ms": 200, "min_quality": 0.9, "min_quality_worst": 0.8,
                 "ttft_ms": 50, "priority": 2, "slo_class": "fast", "may_shorten": True},
    )  # fmt: skip
    assert body.options == SamplingOptions(9, 1.0, 0.5, -7, ("a", "b"), 3, '{"type":"object"}')
    assert (body.stream, body.include_usage, body.logprobs) == (True, True, True)
    assert body.objective.may_shorten
    assert body.objective.headers == {
        "x-plan": "pool:16", "x-slo-ms": "200.0", "x-min-quality": "0.9", "x-min-quality-worst": "0.8",
        "x-ttft-ms": "50.0", "x-priority": "2", "x-slo-class": "fast",
    }  # fmt: skip


def test_roles_parts_and_pictures_keep_their_order() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [PICTURE, TEXT, PICTURE]},
        {"role": "assistant", "content": "a fox"},
        {"role": "user", "content": [TEXT]},
    ]
    chat = parsed(messages=messages).messages
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant", "user"]
    assert chat.turns[1].parts == (ImagePart(), "what is it?", ImagePart())
    where = ["messages[1].content[0].image_url", "messages[1].content[2].image_url"]
    assert [picture.where for picture in chat.pictures] == where


def test_a_message_of_an_answer_can_be_sent_back() -> None:
    """As the official client dumps it, with its empty fields."""
    empty: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    answered = {"role": "assistant", "content": "", **empty}
    assert parsed(messages=[QUESTION, answered, QUESTION]).messages.turns[1].parts == ("",)


@pytest.mark.parametrize(
    ("details", "highest"),
    [
        (("low",), "low"), (("high",), "high"), (("auto",), "auto"), ((None,), "auto"),
        (("low", "low"), "low"),
        (("low", "high"), "high"), (("low", None), "auto"), (("high", "auto", "low"), "high"), ((), "auto"),
    ],
)  # fmt: skip
def test_of_several_details_the_highest_decides(details: tuple[str | None, ...], highest: str) -> None:
    assert parsed(messages=[detailed(*details)]).messages.detail == highest


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1}, {"user": "me"}, {"safety_identifier": "x"}, {"prompt_cache_key": "x"}, {"store": False},
        {"metadata": {}}, {"frequency_penalty": 0}, {"presence_penalty": 0.0}, {"logit_bias": {}},
        {"modalities": ["text"]}, {"service_tier": "auto"}, {"tool_choice": "none"}, {"tools": None},
        {"stop": None, "seed": None, "temperature": None, "max_tokens": None, "stream_options": None},
        {"response_format": {"type": "text"}}, {"max_tokens": 256, "max_completion_tokens": 256},
        {"max_tokens": 256.0}, {"foveate": {}}, {"foveate": None}, {"foveate": {"plan": None}},
        {"logprobs": False}, {"stream": False},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_fields_that_change_nothing_are_accepted(neutral: dict[str, Any]) -> None:
    assert parsed(**neutral) == parsed()


def with_part(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, TEXT]}]}


def with_format(**format_: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": format_}}


DEEP: Any = "x"
for _ in range(300):
    DEEP = [DEEP]
REFUSED: list[tuple[dict[str, Any], str]] = [
    # Models and messages.
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"model": ["m"]}, "model"),
    ({"model": "x" * 600}, "model"),
    ({"model": "\ud83d"}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "what is it?"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": [7]}, "messages[0]"),
    ({"messages": [QUESTION, None]}, "messages[1]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [QUESTION, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[1].role"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
    ({"messages": [QUESTION, {"role": "assistant", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "nmae": "me"}]}, "messages[0].nmae"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "system", "content": [PICTURE]}, QUESTION]}, "messages[0].content[0]"),
    ({"messages": [QUESTION] * 3 + [{"role": "user", "content": "x" * 1000}]}, "messages"),
    ({"messages": [detailed("low", "low", "low", "low")]}, "messages"),
    ({"messages": [{"role": "user", "content": [PICTURE] * 100 + [TEXT]}]}, "messages"),
    # Parts.
    (with_part("x"), "messages[0].content[0]"),
    (with_part(None), "messages[0].content[0]"),
    (with_part({}), "messages[0].content[0].type"),
    (with_part({"type": "vision"}), "messages[0].content[0].type"),
    (with_part({"type": ["text"]}), "messages[0].content[0].type"),
    (with_part({"type": "input_audio", "input_audio": {}}), "messages[0].content[0].type"),
    (with_part({"type": "video_url", "video_url": {"url": URL}}), "messages[0].content[0].type"),
    (with_part({"type": "text"}), "messages[0].content[0].text"),
    (with_part({"type": "text", "text": 7}), "messages[0].content[0].text"),
    (with_part({"type": "text", "text": "x\ud83d"}), "messages[0].content[0].text"),
    (with_part({"type": "text", "text": "x", "url": URL}), "messages[0].content[0].url"),
    (with_part({"type": "image_url"}), "messages[0].content[0].image_url"),
    (with_part({"type": "image_url", "image_url": URL}), "messages[0].content[0].image_url"),
    (with_part({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
    (with_part({"type": "image_url", "image_url": {"url": ""}}), "messages[0].content[0].image_url.url"),
    (with_part({"type": "image_url", "image_url": {"url": [URL]}}), "messages[0].content[0].image_url.url"),
    (
        with_part({"type": "image_url", "image_url": {"url": URL, "detail": "full"}}),
        "messages[0].content[0].image_url.detail",
    ),
    (
        with_part({"type": "image_url", "image_url": {"url": URL, "detail": True}}),
        "messages[0].content[0].image_url.detail",
    ),
    (
        with_part({"type": "image_url", "image_url": {"url": URL, "tokens": 16}}),
        "messages[0].content[0].image_url.tokens",
    ),
    # Numbers, flags and texts.
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "7"}, "max_tokens"),
    ({"max_tokens": 10**7}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_tokens": 1e300}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 7, "max_completion_tokens": 8}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"seed": False}, "seed"),
    ({"n": 2}, "n"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": 7}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a", 7]}, "stop[1]"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "x" * 300}, "stop"),
    ({"stop": "\ud83d"}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"include_tokens": True}}, "stream_options.include_tokens"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
    # Formats of answers.
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
    ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (with_format(schema={"type": "object"}), "response_format.json_schema.name"),
    (with_format(name="x"), "response_format.json_schema.schema"),
    (with_format(name="x", schema=True), "response_format.json_schema.schema"),
    (with_format(name="x", schema={}, strict="yes"), "response_format.json_schema.strict"),
    (with_format(name="x", schema={}, extra=1), "response_format.json_schema.extra"),
    # Fields that OpenAI's API has, and this server does not.
    *[
        ({name: [{}]}, name)
        for name in ("tools", "functions", "audio", "prediction", "web_search_options", "moderation")
    ],
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"parallel_tool_calls": True}, "parallel_tool_calls"),
    ({"function_call": "auto"}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"modalities": []}, "modalities"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"store": True}, "store"),
    ({"store": 0}, "store"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"metadata": []}, "metadata"),
    ({"user": 7}, "user"),
    ({"user": "x" * 600}, "user"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"frequency_penalty": 0.1}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"presence_penalty": False}, "presence_penalty"),
    ({"logit_bias": {"7": 1}}, "logit_bias"),
    ({"logit_bias": []}, "logit_bias"),
    # Fields that nothing has.
    ({"max_token": 7}, "max_token"),
    ({"top_k": 5}, "top_k"),
    ({"": 5}, ""),
    ({"x": DEEP}, "x"),
    ({"temperature": DEEP}, "temperature"),
    # The objective.
    ({"foveate": []}, "foveate"),
    ({"foveate": {"slo": 5}}, "foveate.slo"),
    ({"foveate": {"slo_ms": 0}}, "foveate.slo_ms"),
    ({"foveate": {"slo_ms": "200"}}, "foveate.slo_ms"),
    ({"foveate": {"slo_ms": True}}, "foveate.slo_ms"),
    ({"foveate": {"ttft_ms": -1}}, "foveate.ttft_ms"),
    ({"foveate": {"ttft_ms": 10**9}}, "foveate.ttft_ms"),
    ({"foveate": {"min_quality": 1.1}}, "foveate.min_quality"),
    ({"foveate": {"min_quality_worst": -0.1}}, "foveate.min_quality_worst"),
    ({"foveate": {"priority": 10}}, "foveate.priority"),
    ({"foveate": {"priority": 0.5}}, "foveate.priority"),
    ({"foveate": {"plan": 7}}, "foveate.plan"),
    ({"foveate": {"plan": "x" * 300}}, "foveate.plan"),
    ({"foveate": {"slo_class": []}}, "foveate.slo_class"),
    ({"foveate": {"may_shorten": 1}}, "foveate.may_shorten"),
]


@pytest.mark.parametrize(("changed", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_bad_field_is_refused_by_its_name(changed: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed(**changed)
    assert caught.value.param == param
    assert len(caught.value.detail) < 250
    assert caught.value.detail.isprintable()
    caught.value.detail.encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "are an object"),
        (b'"text"', "are an object"),
        (b'{"model": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'{"x": ' + b"[" * (MAX_JSON_OBJECTS + 1), "objects and arrays"),
        (b'{"x": ' + b"[" * 15000 + b"]" * 15000 + b"}", "nested too deeply"),
        (b'{"x": [' + b"1," * MAX_JSON_TOKENS + b"1]}", "commas"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_is_no_json_object_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_chat(text, SETTINGS)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ('"model": "m", "model": "m"', "model"),
        ('"messages": [{"role": "user", "role": "user"}]', "messages[0].role"),
        ('"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "text": "y"}]}]', None),
        ('"foveate": {"plan": "full", "plan": "pool:16"}', "foveate.plan"),
        (
            '"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":'
            ' {"properties": {"a": {}, "a": {}}}}}',
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_name_that_is_given_twice_is_refused(members: str, param: str | None) -> None:
    rest = "" if "messages" in members else ', "messages": [{"role": "user", "content": "x"}]'
    model = "" if '"model"' in members else '"model": "m", '
    with pytest.raises(BadRequest, match="twice") as caught:
        parse_chat(f"{{{model}{members}{rest}}}".encode(), SETTINGS)
    assert caught.value.param == (param or "messages[0].content[0].text")


def test_a_misspelt_field_gets_the_nearest_name() -> None:
    with pytest.raises(BadRequest, match="did you mean max_tokens"):
        parsed(max_tokns=7)
    with pytest.raises(BadRequest, match="did you mean slo_ms"):
        parsed(foveate={"slo_m": 7})


def test_a_schema_is_kept_as_text() -> None:
    schema = {"type": "object", "properties": {"naïve": {"type": "string"}}}
    body = parsed(**with_format(name="x", schema=schema, strict=True, description=None))
    assert json.loads(body.options.json_schema) == schema


def test_a_surrogate_in_a_schema_is_escaped_or_refused() -> None:
    """JSON text holds it as an escape; the grammar library decides."""
    body = parsed(**with_format(name="x", schema={"enum": ["\ud83d"]}))
    assert body.options.json_schema.isascii()
