"""Errors as OpenAI's error objects."""

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request

from foveate.core.errors import (
    BadPlan,
    BadRequest,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    FoveateError,
    Overloaded,
    RunFailed,
    SchemaTooComplex,
    TooLate,
    UnknownModel,
)
from foveate.gateway.schemas.chat import OpenAiError
from foveate.gateway.schemas.openai_errors import http_error, openai_error


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (BadRequest("d", "stop[1]"), 400, "invalid_request_error", "stop[1]", None),
        (BadPlan("d"), 400, "invalid_request_error", None, None),
        (ContextTooLong("d"), 400, "invalid_request_error", None, "context_length_exceeded"),
        (SchemaTooComplex("d"), 400, "invalid_request_error", "response_format", None),
        (UnknownModel("d"), 404, "invalid_request_error", "model", "model_not_found"),
        (Overloaded("d"), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (TooLate("d", 2.1), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (Draining("d"), 503, "server_error", None, "draining"),
        (DeadlineExceeded("d"), 504, "server_error", None, "deadline_exceeded"),
        (RunFailed("d"), 500, "server_error", None, None),
    ],
)
def test_an_error_is_an_error_object(
    error: FoveateError, status: int, kind: str, param: str | None, code: str | None
) -> None:
    response = openai_error(error, "1")
    assert (response.status_code, response.media_type) == (status, "application/json")
    assert response.headers["x-request-id"] == "1"
    fields = OpenAiError.model_validate_json(bytes(response.body)).error
    assert fields.model_dump() == {"message": "d", "type": kind, "param": param, "code": code}
    assert ("retry-after" in response.headers) == (status in (429, 503))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "is_object"), [("/v1/files", True), ("/v1", True), ("/v1x", False), ("/models", False)]
)
async def test_the_path_decides_the_form_of_errors(path: str, is_object: bool) -> None:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "app": Starlette()}
    response = await http_error(Request(scope), HTTPException(404))
    assert response.status_code == 404
    assert (response.media_type == "application/json") == is_object
    if is_object:
        assert OpenAiError.model_validate_json(bytes(response.body)).error.code == "unknown_url"


@pytest.mark.anyio
async def test_other_exceptions_are_raised() -> None:
    with pytest.raises(ValueError, match="internal"):
        await http_error(Request({"type": "http", "path": "/v1/x", "headers": []}), ValueError("internal"))
