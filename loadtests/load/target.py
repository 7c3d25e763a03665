"""Where requests go, and the bytes of one."""

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
        return f"http://{self.host}:{self.port}{self.path}"


def target(url: str, path: str, headers: Mapping[str, str], parse: Parser = foveate) -> Target:
    """Raises SetupError: a load test is aimed at nobody but this machine, and speaks plain HTTP."""
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError as error:
        raise SetupError(f"{url!r} names no port") from error
    if parts.scheme != "http" or not parts.hostname:
        raise SetupError(f"{url!r} is no address of a server; it looks like http://127.0.0.1:8000")
    return Target(_loopback(parts.hostname), port, parts.path.rstrip("/") + path, headers, parse)


def _loopback(name: str) -> str:
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise SetupError(f"there is no host {name!r}") from error
    if not ipaddress.ip_address(address).is_loopback:
        raise SetupError(f"{name} is another machine; a load test is sent to this one only (127.0.0.1)")
    return address


ANEW = {"cache-control": "no-cache"}
"""The same pictures come again and again, and each is to be looked at."""


def request_head(target: Target, headers: Mapping[str, str]) -> bytes:
    """A POST's head but for content-length, the last line, whose value and two line ends come after it."""
    lines = [f"POST {target.path} HTTP/1.1", f"host: {target.host}:{target.port}", "content-type: image/jpeg"]
    said = {**ANEW, **headers, **target.headers}
    lines += [f"{name}: {value}" for name, value in said.items()]
    return "\r\n".join([*lines, "content-length: "]).encode()


def request_bytes(head: bytes, body: bytes) -> bytes:
    """One request, ready to be written."""
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)
