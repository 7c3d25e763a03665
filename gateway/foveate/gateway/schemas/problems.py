"""Errors as RFC 9457 problem details. `openai_errors` has the other rendering, for the routes under /v1."""

import logging
import math
from urllib.parse import quote

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from foveate.core.errors import DeadlineExceeded, Draining, FoveateError, Unavailable, UnsupportedEncoding
from foveate.gateway.body_formats.compression import ENCODINGS

log = logging.getLogger(__name__)


def problem(error: FoveateError, request_id: str) -> Response:
    """The response for an error. It contains the error's message and nothing else about the server."""
    kind = type(error).__name__
    slug = "".join(f"-{c.lower()}" if c.isupper() else c for c in kind).lstrip("-")
    headers = error_headers(error, request_id)
    return render(f"urn:foveate:problem:{slug}", error.title, error.status, error.detail, headers)


def error_headers(error: FoveateError, request_id: str) -> dict[str, str]:
    """The headers of the response for an error, whatever its body."""
    headers = {"x-request-id": request_id}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Draining):
        headers["connection"] = "close"
    if isinstance(error, DeadlineExceeded):
        headers["x-slo-met"] = "false"
    if isinstance(error, UnsupportedEncoding):
        headers["accept-encoding"] = ", ".join(ENCODINGS)  # RFC 9110, section 12.5.3
    return headers


def render(kind: str, title: str, status: int, detail: str, headers: dict[str, str]) -> Response:
    """A problem document. `kind` is the URI of the problem type."""
    body = {"type": kind, "title": title, "status": status, "detail": unicode_text(detail)}
    if "x-request-id" in headers:
        body["instance"] = f"urn:foveate:request:{quote(headers['x-request-id'])}"
    return Response(orjson.dumps(body), status, headers, "application/problem+json")


def unicode_text(text: str) -> str:
    """A text that UTF-8 can encode. Names in JSON may hold lone surrogates, and errors repeat them."""
    return text.encode("utf-8", "backslashreplace").decode()


async def http_problem(request: Request, error: Exception) -> Response:
    """The response for errors of the framework, such as an unknown route or a method that is not allowed."""
    status, title, detail, headers = http_error_parts(request, error)
    return render("about:blank", title, status, detail, headers)


def http_error_parts(request: Request, error: Exception) -> tuple[int, str, str, dict[str, str]]:
    """Status, title, detail and headers of the response for an error of the framework. Raises any other."""
    if not isinstance(error, HTTPException):
        raise error
    headers, path = dict(error.headers or {}), str(request.scope["path"])
    detail = f"{request.method} {path[:100]}: {error.detail}"
    if error.status_code == 404 and path.endswith("/") and _is_route(request, path.rstrip("/")):
        detail += f"; the path is {path.rstrip('/')}, without a slash at its end"
    if "Allow" in headers:
        allowed = set(headers["Allow"].split(", "))
        headers["Allow"] = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
    return error.status_code, str(error.detail), detail, headers


def _is_route(request: Request, path: str) -> bool:
    """Whether the application has a route at this path."""
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)
