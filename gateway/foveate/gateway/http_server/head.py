"""Checks of a request's head that the parser does not make."""

import re
from collections.abc import Sequence
from functools import lru_cache

import httptools

from foveate.gateway.http_server import refusals
from foveate.gateway.http_server.refusals import MAX_HEAD_BYTES, HttpRefusal

_HOST = re.compile(rb"(\[[0-9a-f:.%]+\]|[\w.~!$&'()*+,;=%-]+)(:\d*)?", re.IGNORECASE)


def check_host(hosts: Sequence[bytes], version: str) -> HttpRefusal | None:
    """The refusal of a request with these host headers; None if they are right (RFC 9112, section 3.2)."""
    if len(hosts) == 1 and is_valid_host(hosts[0]):
        return None
    return None if not hosts and version == "1.0" else refusals.NO_HOST


@lru_cache(maxsize=256)
def is_valid_host(host: bytes) -> bool:
    """Whether this is the value of a host header: a name or an address, and perhaps a port."""
    return len(host) < 1024 and _HOST.fullmatch(host) is not None


def check_size(url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> HttpRefusal | None:
    """The refusal of a head over the limit; None for a smaller one."""
    size = len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
    return too_large(url) if size > MAX_HEAD_BYTES else None


def too_large(url: bytes) -> HttpRefusal:
    """The refusal of a head over the limit."""
    return refusals.URL_TOO_LONG if 2 * len(url) > MAX_HEAD_BYTES else refusals.HEAD_TOO_LARGE


def origin_form(target: bytes) -> bytes:
    """A request target in absolute form, or `*`, as a path with a query (RFC 9112, section 3.2).

    Raises httptools.HttpParserInvalidURLError.
    """
    if target == b"*":
        return b"/*"
    parsed = httptools.parse_url(target)
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
