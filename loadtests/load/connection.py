"""HTTP/1.1 over gevent sockets: as little processor time a request as Python allows.

Server and generator share a machine, so whatever the generator burns is taken from the server."""

from gevent import socket
from httptools import HttpParserError, HttpResponseParser

from loadtests.load.target import Target

CHUNK = 1 << 16


class Broken(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


class Connection:
    """One keep-alive connection that carries one request at a time."""

    def __init__(self, target: Target) -> None:
        self.socket = socket.create_connection((target.host, target.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, request: bytes) -> tuple[int, bytes, bool]:
        """Status, body, and whether the connection may carry another. Raises Broken and OSError."""
        self.socket.sendall(request)
        answer = _Answer()
        while not answer.complete:
            data = self.socket.recv(CHUNK)
            if not data:
                raise Broken("the server hung up before it had answered")
            answer.feed(data)
        return answer.parser.get_status_code(), b"".join(answer.parts), answer.keep_alive

    @property
    def stale(self) -> bool:
        """The server has closed it, or said something nobody asked for."""
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
        self.socket.close()


class _Answer:
    """Collects one response from the parser's calls."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.complete = self.keep_alive = False
        self.parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserError as error:
            raise Broken("the server answered something that is no HTTP") from error

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.complete, self.keep_alive = True, self.parser.should_keep_alive()


class Pool:
    """Idle connections, the one used last first. It never makes anybody wait: where none is idle, a new
    one is opened, or a slow server would slow the schedule."""

    def __init__(self, target: Target) -> None:
        self.target, self.idle, self.opened = target, list[Connection](), 0

    def take(self) -> Connection:
        while self.idle:
            connection = self.idle.pop()
            if not connection.stale:
                return connection
            connection.close()
        self.opened += 1
        return Connection(self.target)

    def give(self, connection: Connection) -> None:
        self.idle.append(connection)

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()
