"""Errors as problem details."""

import json

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from foveate.core.errors import (
    BadPlan,
    BadRequest,
    DeadlineExceeded,
    Draining,
    FoveateError,
    Overloaded,
    RunFailed,
    TooLate,
    UnsupportedEncoding,
)
from foveate.gateway.schemas.image import Problem
from foveate.gateway.schemas.problems import http_problem, problem


@pytest.mark.parametrize(
    ("error", "status", "slug", "headers"),
    [
        (BadPlan("d"), 400, "bad-plan", {}),
        (Overloaded("d", 0.2), 429, "overloaded", {"retry-after": "1"}),
        (TooLate("d", 2.1), 429, "too-late", {"retry-after": "3"}),
        (Draining("d"), 503, "draining", {"retry-after": "1", "connection": "close"}),
        (DeadlineExceeded("d"), 504, "deadline-exceeded", {"x-slo-met": "false"}),
        (RunFailed("d"), 500, "run-failed", {}),
        (UnsupportedEncoding("d"), 415, "unsupported-encoding", {"accept-encoding": "gzip, deflate"}),
    ],
)
def test_an_error_is_a_problem_document(
    error: FoveateError, status: int, slug: str, headers: dict[str, str]
) -> None:
    response = problem(error, "id 1")
    assert response.status_code == status
    assert response.media_type == "application/problem+json"
    body = Problem.model_validate_json(bytes(response.body))
    assert (body.type, body.title, body.status, body.detail) == (
        f"urn:foveate:problem:{slug}", type(error).title, status, "d",
    )  # fmt: skip
    assert body.instance == "urn:foveate:request:id%201"
    assert dict(response.headers).items() >= ({"x-request-id": "id 1"} | headers).items()
    assert ("retry-after" in response.headers) == ("retry-after" in headers)


REQUEST = Request(
    {"type": "http", "method": "GET", "path": "/" + "x" * 200, "headers": [], "query_string": b""}
)


@pytest.mark.anyio
async def test_an_error_of_the_framework_is_a_problem_document_too() -> None:
    response = await http_problem(REQUEST, HTTPException(405, headers={"allow": "POST"}))
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    body = json.loads(bytes(response.body))
    assert (body["type"], body["title"]) == ("about:blank", "Method Not Allowed")
    assert body["detail"] == "GET /" + "x" * 99 + ": Method Not Allowed"
    assert "instance" not in body


@pytest.mark.anyio
async def test_any_other_error_is_raised_again() -> None:
    with pytest.raises(ValueError, match="internal"):
        await http_problem(REQUEST, ValueError("internal"))


def test_an_error_may_repeat_a_name_that_is_no_unicode() -> None:
    body = problem(BadRequest("there is no option 'a\ud800'"), "1").body
    assert json.loads(bytes(body))["detail"] == "there is no option 'a\\ud800'"
