"""The server under test, and the bytes of a request to it."""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from foveate.core.errors import SetupError
from loadtests.load.answers import Parser, foveate


@dataclass(frozen=True, slots=True)
class Target:
    """One server on this machine."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request."""
    parse: Parser = foveate

    @property
    def url(self) -> str:
        """The URL that requests are sent to."""
        return f"http://{self.host}:{self.port}{self.path}"


def target(url: str, path: str, headers: Mapping[str, str], parse: Parser = foveate) -> Target:
    """The target at this URL and path. Raises SetupError unless it is plain HTTP on this machine."""
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError as error:
        raise SetupError(f"the port of {url!r} is not a number from 0 to 65535") from error
    if parts.scheme != "http" or not parts.hostname:
        raise SetupError(f"{url!r} is not the address of a server; write it as http://127.0.0.1:8000")
    return Target(_loopback(parts.hostname), port, parts.path.rstrip("/") + path, headers, parse)


def _loopback(name: str) -> str:
    """The address of a host name. Raises SetupError if it is not a loopback address."""
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise SetupError(f"the host {name!r} cannot be resolved") from error
    if not ipaddress.ip_address(address).is_loopback:
        raise SetupError(f"{name} is another machine; a load test only sends to this machine (127.0.0.1)")
    return address


UNCACHED = {"cache-control": "no-cache"}
"""A load test repeats a few images, and the server must compute each answer."""


def request_head(target: Target, headers: Mapping[str, str]) -> bytes:
    """The head of a POST up to the value of content-length; `request_bytes` adds the rest."""
    lines = [f"POST {target.path} HTTP/1.1", f"host: {target.host}:{target.port}", "content-type: image/jpeg"]
    sent = {**UNCACHED, **headers, **target.headers}
    lines += [f"{name}: {value}" for name, value in sent.items()]
    return "\r\n".join([*lines, "content-length: "]).encode()


def request_bytes(head: bytes, body: bytes) -> bytes:
    """The bytes of one request."""
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)
