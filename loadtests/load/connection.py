"""HTTP/1.1 over gevent sockets, with little processor time per request.

The server and the generator share a machine, so processor time of the generator slows the server down.
"""

import time
from dataclasses import dataclass

from gevent import socket
from httptools import HttpParserError, HttpResponseParser

from loadtests.load.target import Target

CHUNK = 1 << 16


class ConnectionBroken(Exception):
    """The connection ended before the answer was complete, or the answer is not HTTP."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One complete answer."""

    status: int
    body: bytes
    reusable: bool
    """Whether the connection can carry another request."""
    received: tuple[tuple[int, float], ...]
    """For each part of the body, the bytes of the body up to its end and the `perf_counter` time at which it
    came: streamed answers come in many parts."""


class Connection:
    """One keep-alive connection that carries one request at a time."""

    def __init__(self, target: Target) -> None:
        self.socket = socket.create_connection((target.host, target.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, request: bytes) -> HttpReply:
        """Send a request and return its answer.

        Raises ConnectionBroken and OSError.
        """
        self.socket.sendall(request)
        response = _Response()
        while not response.complete:
            data = self.socket.recv(CHUNK)
            if not data:
                raise ConnectionBroken("the server closed the connection before its answer was complete")
            response.feed(data)
        return response.reply()

    @property
    def stale(self) -> bool:
        """Whether the server has closed the connection or sent data without a request."""
        self.socket.settimeout(0)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(None)
        return True

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class _Response:
    """One response, collected by the callbacks of the parser."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.received: list[tuple[int, float]] = []
        self.length, self.now = 0, 0.0
        self.complete = self.keep_alive = False
        self.parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse received bytes. Raises ConnectionBroken if they are not HTTP."""
        self.now = time.perf_counter()
        try:
            self.parser.feed_data(data)
        except HttpParserError as error:
            raise ConnectionBroken("the answer of the server is not HTTP") from error

    def on_body(self, body: bytes) -> None:
        """Called by the parser with a part of the body."""
        self.parts.append(body)
        self.length += len(body)
        self.received.append((self.length, self.now))

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the response."""
        self.complete, self.keep_alive = True, self.parser.should_keep_alive()

    def reply(self) -> HttpReply:
        """The complete answer."""
        status, body = self.parser.get_status_code(), b"".join(self.parts)
        return HttpReply(status, body, self.keep_alive, tuple(self.received))


class ConnectionPool:
    """Idle connections, the most recently used one first.

    If none is idle, the pool opens a new one. It never waits, because a slow server would then delay the
    schedule.
    """

    def __init__(self, target: Target) -> None:
        self.target, self.idle, self.opened = target, list[Connection](), 0

    def acquire(self) -> Connection:
        """An idle connection, or a new one. Raises OSError if the server cannot be reached."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.stale:
                return connection
            connection.close()
        self.opened += 1
        return Connection(self.target)

    def release(self, connection: Connection) -> None:
        """Return a reusable connection to the pool."""
        self.idle.append(connection)

    def close(self) -> None:
        """Close all idle connections."""
        while self.idle:
            self.idle.pop().close()
