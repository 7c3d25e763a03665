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
    content_type: str = "image/jpeg"

    @property
    def url(self) -> str:
        """The URL that requests are sent to."""
        return f"http://{self.host}:{self.port}{self.path}"


def target(
    url: str,
    path: str,
    headers: Mapping[str, str],
    parse: Parser = foveate,
    content_type: str = "image/jpeg",
) -> Target:
    """The target at this URL and path. Raises SetupError unless it is plain HTTP on this machine."""
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError as error:
        raise SetupError(f"the port of {url!r} is not a number from 0 to 65535") from error
    if parts.scheme != "http" or not parts.hostname:
        raise SetupError(f"{url!r} is not the address of a server; write it as http://127.0.0.1:8000")
    base = parts.path.rstrip("/")
    if base.endswith("/v1") and path.startswith("/v1/"):
        base = base.removesuffix("/v1")  # the base URL of OpenAI's clients ends with it
    return Target(_loopback(parts.hostname), port, base + path, headers, parse, content_type)


def _loopback(name: str) -> str:
    """The address of a host name. Raises SetupError if it is not a loopback address."""
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise SetupError(f"the host {name!r} cannot be resolved") from error
    if not ipaddress.ip_address(address).is_loopback:
        raise SetupError(f"{name} is another machine; a load test only sends to this machine (127.0.0.1)")
    return address


CHAT_PATH = "/chat/completions"
UNCACHED = {"cache-control": "no-cache"}
"""A load test repeats a few images, and the server must compute each answer. It is not sent with chats, which
have no cache of answers: what a server keeps of pictures and prompts is a part of what is measured."""


def request_head(target: Target, headers: Mapping[str, str]) -> bytes:
    """The head of a POST up to the value of content-length; `request_bytes` adds the rest."""
    lines = [f"POST {target.path} HTTP/1.1", f"host: {target.host}:{target.port}"]
    lines.append(f"content-type: {target.content_type}")
    uncached = {} if target.path.endswith(CHAT_PATH) else UNCACHED
    sent = {**uncached, **headers, **target.headers}
    lines += [f"{name}: {value}" for name, value in sent.items()]
    return "\r\n".join([*lines, "content-length: "]).encode()


def request_bytes(head: bytes, body: bytes) -> bytes:
    """The bytes of one request."""
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)
