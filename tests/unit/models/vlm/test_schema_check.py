"""Schemas are checked in a process of their own, which ends when they take too long."""

import json
import subprocess
from typing import Any

import pytest

from foveate.core.errors import BadRequest, Overloaded
from foveate.models.vlm import schema_check
from foveate.models.vlm.constraints import MAX_SCHEMA_BYTES
from foveate.models.vlm.schema_check import check_schema_apart

GOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"fox": {"type": "boolean"}, "count": {"type": "integer", "multipleOf": 5}},
    "required": ["fox"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def no_verdicts() -> None:
    schema_check._reason.cache_clear()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999_983},
        {"type": "string", "allOf": [{"pattern": f"a.{{{number}}}b"} for number in range(1, 40)]},
    ],
    ids=["multipleOf", "allOf"],
)
def test_a_schema_that_would_take_minutes_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="over 2 s to compile") as refused:
        check_schema_apart(json.dumps(schema))
    assert refused.value.param == "response_format"


@pytest.mark.parametrize(
    ("schema", "words"),
    [({"type": "strin"}, "Invalid type"), ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes")],
    ids=["invalid", "long"],
)
def test_the_reason_of_the_library_is_passed_on(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words) as refused:
        check_schema_apart(json.dumps(schema))
    assert refused.value.param == "response_format"


def test_verdicts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = json.dumps({"type": "strin"})
    check_schema_apart(json.dumps(GOOD))
    with pytest.raises(BadRequest):
        check_schema_apart(bad)
    monkeypatch.setattr(subprocess, "run", None)
    check_schema_apart(json.dumps(GOOD))
    with pytest.raises(BadRequest, match="Invalid type"):
        check_schema_apart(bad)


def test_a_check_that_gets_no_processor_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(Overloaded):
        patched.setattr(schema_check, "MAX_WAIT_S", 1e-3)
        check_schema_apart(json.dumps(GOOD))
    check_schema_apart(json.dumps(GOOD))


def test_a_process_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_check, "__name__", "foveate.no_such_module")
    with pytest.raises(RuntimeError, match="no_such_module"):
        check_schema_apart(json.dumps(GOOD))
