"""Answers of random weights obey JSON schemas, and schemas that cannot be obeyed are refused."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from foveate.core.chat import SamplingOptions, Turn
from foveate.core.errors import BadRequest, SchemaTooComplex
from foveate.models.vlm import constraints
from foveate.models.vlm.answering import ChatRequest
from foveate.models.vlm.constraints import MAX_SCHEMA_BYTES, ConstraintCompiler, check_schema
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.tokenizer import END, MARKS
from tests.support import chat_models

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

TURNS = (Turn("user", ("what is left of the fox?",)),)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "integer", "minimum": 0, "maximum": 99},
    {"enum": ["fox", "naïve café", 7, None]},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[a-f]{3}$"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {
        "type": "object",
        "properties": {
            "object": {"type": "string", "enum": ["fox", "teacup"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
            "where": {"anyOf": [{"type": "null"}, {"enum": ["left", "right"]}]},
        },
        "required": ["object", "count"],
        "additionalProperties": False,
    },
]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ChatRunner:
    return ChatRunner(chat_models.load(tmp_path_factory.mktemp("chat")), slots=8, slot_tokens=256)


def options(schema: dict[str, Any], **others: Any) -> SamplingOptions:
    values: dict[str, Any] = {"max_tokens": 200, "json_schema": json.dumps(schema)} | others
    return SamplingOptions(**values)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_random_weights_obey_a_schema(runner: ChatRunner, schema: dict[str, Any], temperature: float) -> None:
    for seed in range(4):
        answer = runner.answer((), TURNS, runner.full, options(schema, temperature=temperature, seed=seed))
        assert answer.finish == "stop"
        Draft202012Validator(schema).validate(json.loads(answer.text))
        tokens = [choice.token for choice in answer.choices]
        assert tokens[-1] == END
        assert min(tokens[:-1]) >= len(MARKS)


def test_each_answer_of_a_batch_has_a_state_of_its_own(runner: ChatRunner) -> None:
    free = SamplingOptions(8, 1.0, seed=1)
    mixed = [options(schema, temperature=1.0, seed=1) for schema in (*SCHEMAS, *SCHEMAS)]
    requests = [ChatRequest((), TURNS, each) for each in (free, *mixed, free)]
    together = runner.answers(requests, runner.full)
    alone = [runner.answers([request], runner.full)[0] for request in requests]
    for each, other in zip(together, alone, strict=True):
        assert not isinstance(each, Exception)
        assert not isinstance(other, Exception)
        assert each.text == other.text


def test_an_answer_that_is_cut_off_is_the_beginning_of_valid_json(runner: ChatRunner) -> None:
    answer = runner.answer((), TURNS, runner.full, options(SCHEMAS[-1], max_tokens=3))
    assert answer.finish == "length"
    assert '{"object":"fox"'.startswith(answer.text) or '{"object":"teacup"'.startswith(answer.text)


def test_alternatives_are_among_the_allowed_tokens(runner: ChatRunner) -> None:
    answer = runner.answer((), TURNS, runner.full, options({"type": "boolean"}, top_logprobs=5))
    first = answer.choices[0]
    assert 0 < len(first.alternatives) <= 5
    texts = {runner.tokenizer.token_bytes(token) for token, _ in first.alternatives}
    assert all(b"true".startswith(text) or b"false".startswith(text) for text in texts)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "Invalid type"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]}, "oneOf"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
        ({"type": "string", "format": "nonsense"}, "format"),
        ({"enum": []}, "empty"),
        ({"$ref": "http://127.0.0.1/x.json"}, "127.0.0.1"),
        ({"$ref": "file:///etc/passwd"}, "passwd"),
        ({"x-guidance": {"lenient": True}, "type": "object"}, "x-guidance"),
        ({"type": "string", "pattern": "^" + "(a|b)?" * 2000 + "$"}, "JSON schema"),
        ({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1100)}}, "JSON schema"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes"),
        ({"enum": ["\ud83d"]}, "hex escape"),
        ({"maximum": math.inf}, "cannot be read"),
        ({"maximum": 10**400}, "out of range"),
        (nested(200), "recursion limit"),
        ({"minimum": 5, "maximum": 3, "type": "integer"}, "greater than maximum"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"properties": []}, "properties"),
        ({"if": {"type": "string"}, "then": {}}, "then"),
        ({"$ref": "#/$defs/x"}, "does not exist"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "JSON schema"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_that_cannot_be_obeyed_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        check_schema(json.dumps(schema))
    assert caught.value.param == "response_format"
    assert len(caught.value.detail) < 250


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_a_schema_that_can_be_obeyed_is_not_refused(schema: dict[str, Any]) -> None:
    check_schema(json.dumps(schema))


def test_a_token_that_is_not_allowed_fails_the_answer(runner: ChatRunner) -> None:
    constraint = ConstraintCompiler(runner.tokenizer).compile('{"type":"boolean"}')
    constraint.allowed()
    with pytest.raises(SchemaTooComplex, match="JSON schema"):
        constraint.accept(runner.tokenizer.encode("fox")[-1])


def test_without_the_library_an_error_names_the_command(
    runner: ChatRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    constraints._byte_tokenizer.cache_clear()
    with pytest.raises(BadRequest, match=r"pip install 'foveate\[json-schema\]'"):
        check_schema('{"type":"boolean"}')
    with pytest.raises(BadRequest, match=r"pip install 'foveate\[json-schema\]'"):
        ConstraintCompiler(runner.tokenizer).compile('{"type":"boolean"}')
