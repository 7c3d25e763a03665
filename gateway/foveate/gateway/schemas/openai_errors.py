"""Errors of the routes under /v1 as OpenAI's error objects, which its clients turn into exceptions."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from foveate.core.errors import (
    BadRequest,
    ContextTooLong,
    DeadlineExceeded,
    DeviceHung,
    Draining,
    FoveateError,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from foveate.gateway.schemas.problems import error_headers, http_error_parts, http_problem, unicode_text

PREFIX = "/v1"
"""The routes of OpenAI's API are below this path."""
CODES: tuple[tuple[type[FoveateError], str], ...] = (
    (UnknownModel, "model_not_found"),
    (ContextTooLong, "context_length_exceeded"),
    (Overloaded, "rate_limit_exceeded"),
    (Draining, "draining"),
    (DeviceHung, "device_hung"),
    (Unavailable, "unavailable"),
    (DeadlineExceeded, "deadline_exceeded"),
)
"""The `code` of the first class that an error belongs to. Others have none."""


def openai_error(error: FoveateError, request_id: str) -> Response:
    """The response for an error. It contains the error's message and nothing else about the server."""
    param = error.param if isinstance(error, BadRequest) else None
    if isinstance(error, UnknownModel):
        param = param or "model"
    code = next((code for kind, code in CODES if isinstance(error, kind)), None)
    return render_object(error.status, error.detail, param, code, error_headers(error, request_id))


def is_openai_path(path: str) -> bool:
    """Whether the errors of a path are error objects."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


async def http_error(request: Request, error: Exception) -> Response:
    """The response for errors of the framework, in the form of the path. Raises other errors."""
    if not is_openai_path(str(request.scope["path"])):
        return await http_problem(request, error)
    status, _, detail, headers = http_error_parts(request, error)
    return render_object(status, detail, None, "unknown_url" if status == 404 else None, headers)


def render_object(
    status: int, message: str, param: str | None, code: str | None, headers: dict[str, str]
) -> Response:
    """An error object. param: the path of the field that is wrong; code: for programs."""
    kind = (
        "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    )
    where = None if param is None else unicode_text(param)
    content: dict[str, Any] = {"message": unicode_text(message), "type": kind, "param": where, "code": code}
    return Response(orjson.dumps({"error": content}), status, headers, "application/json")
