"""The HTTP parser: the head of a request has a limit, its body has none here."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from foveate.gateway.http_limits import MAX_HEAD_BYTES, BoundedHttp

pytestmark = pytest.mark.anyio


class ParserConnection(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 81)})
        self.sent, self.closed = b"", False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """The parser pauses a connection with a large body."""

    def resume_reading(self) -> None:
        """The parser resumes it."""


async def app(scope: object, receive: object, send: object) -> None:
    """An application that never answers."""
    await asyncio.Event().wait()


async def connect() -> tuple[BoundedHttp, ParserConnection]:
    config = uvicorn.Config(app, http=BoundedHttp, lifespan="off")
    config.load()
    protocol, connection = BoundedHttp(config, ServerState(), {}), ParserConnection()
    protocol.connection_made(connection)
    return protocol, connection


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"


async def test_a_head_over_the_limit_gets_431_and_the_connection_is_closed() -> None:
    protocol, connection = await connect()
    protocol.data_received(HEAD)
    for _ in range(70):
        if not connection.closed:
            protocol.data_received(b"x-a: " + b"b" * 1000 + b"\r\n")
    assert connection.sent.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in connection.sent
    assert connection.sent.count(b"HTTP/1.1") == 1
    assert connection.closed


async def test_a_head_within_the_limit_and_a_large_body_pass() -> None:
    protocol, connection = await connect()
    size = 2 * MAX_HEAD_BYTES
    protocol.data_received(HEAD + b"content-length: %d\r\n\r\n" % size)
    for _ in range(20):
        protocol.data_received(b"b" * (size // 20))
    assert connection.sent == b""
    assert not connection.closed
