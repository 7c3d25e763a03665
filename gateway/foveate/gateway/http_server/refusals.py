"""Answers to requests that are refused before the application sees them, in the form of its own errors."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from foveate.gateway.schemas.openai_errors import is_openai_path, render_object
from foveate.gateway.schemas.problems import render

MAX_HEAD_BYTES = 64 * 1024
"""Maximum bytes of the request line and headers together."""
MAX_PIPELINED = 32
"""Maximum number of requests on one connection that wait for the answer to an earlier one."""


class HttpRefusal:
    """The refusal of one request. The connection is closed after it.

    An instance is an ASGI application, for a request whose head is complete, as is what `for_target` gives;
    `encoded` is for one whose head is not.
    """

    def __init__(self, status: HTTPStatus, slug: str, detail: str, **headers: str) -> None:
        """slug: the last part of the problem's type. headers: underscores in names stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.status = status
        named["connection"] = "close"
        self.response = render(f"urn:foveate:problem:{slug}", status.phrase, status, detail, dict(named))
        self._object = render_object(status, detail, None, slug.replace("-", "_"), named)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        await self.response(scope, receive, send)

    def for_target(self, target: bytes) -> Response:
        """The response to a request for this target: an error object under /v1. It is an ASGI application."""
        path = target.partition(b"?")[0].decode("latin-1")
        return self._object if is_openai_path(path) else self.response

    def encoded(self, default_headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The answer as bytes of HTTP/1.1, with the server's default headers."""
        lines = [b"HTTP/1.1 %d %b" % (self.status, self.status.phrase.encode())]
        lines += [b"%b: %b" % pair for pair in (*default_headers, *self.response.raw_headers)]
        return b"\r\n".join((*lines, b"", self.response.body))


INVALID = HttpRefusal(
    HTTPStatus.BAD_REQUEST, "invalid-http", "the bytes on this connection are not a valid HTTP/1.1 request"
)
NO_HOST = HttpRefusal(
    HTTPStatus.BAD_REQUEST,
    "invalid-host",
    "an HTTP/1.1 request needs exactly one host header, as in 'host: example.org:8000'",
)
TINY_CHUNKS = HttpRefusal(
    HTTPStatus.BAD_REQUEST,
    "tiny-chunks",
    "the chunks of the body are too small, or carry too many bytes that are no body; send larger chunks",
)
HEAD_TOO_SLOW = HttpRefusal(
    HTTPStatus.REQUEST_TIMEOUT, "head-too-slow", "the request's head did not arrive within the server's limit"
)
URL_TOO_LONG = HttpRefusal(
    HTTPStatus.REQUEST_URI_TOO_LONG, "url-too-long", f"the request line is over {MAX_HEAD_BYTES} bytes"
)
HEAD_TOO_LARGE = HttpRefusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head-too-large",
    f"the request line and headers are over {MAX_HEAD_BYTES} bytes",
)
TOO_MANY_PIPELINED = HttpRefusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "too-many-pipelined",
    f"over {MAX_PIPELINED} requests wait on this connection; wait for answers, or use more connections",
    retry_after="1",
)
UNKNOWN_CODING = HttpRefusal(
    HTTPStatus.NOT_IMPLEMENTED, "unknown-coding", "the only transfer coding that this server reads is chunked"
)
NO_TUNNEL = HttpRefusal(HTTPStatus.NOT_IMPLEMENTED, "no-tunnel", "this server is no proxy: send no CONNECT")
UNKNOWN_VERSION = HttpRefusal(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "unknown-version", "this server speaks HTTP/1.1 and HTTP/1.0"
)
TOO_MANY_CONNECTIONS = HttpRefusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too-many-connections",
    "the server has as many open connections as it may have; retry later",
    retry_after="1",
)
