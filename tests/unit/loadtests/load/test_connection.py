"""Keep-alive connections and their pool, against a real socket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtests.load.connection import Connection, ConnectionBroken, ConnectionPool
from loadtests.load.target import Target
from tests.support.scripted_server import http, scripted_server

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    connection = Connection(Target("127.0.0.1", port, "/"))
    try:
        yield connection
    finally:
        connection.close()


def test_a_connection_carries_several_requests() -> None:
    with (
        scripted_server(lambda n: http(200, b"answer %d" % n)) as server,
        connected(server.port) as connection,
    ):
        for number in range(2):
            reply = connection.exchange(REQUEST)
            assert (reply.status, reply.body, reply.reusable) == (200, b"answer %d" % number, True)
        assert server.connections == 1


def test_a_response_that_closes_the_connection_is_not_reusable() -> None:
    with (
        scripted_server(lambda _: http(503, b"", "connection: close")) as server,
        connected(server.port) as connection,
    ):
        reply = connection.exchange(REQUEST)
        assert (reply.status, reply.body, reply.reusable) == (503, b"", False)


def test_each_part_of_a_streamed_answer_has_the_time_at_which_it_came() -> None:
    def answer(_: int) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        for part in (b"2\r\nab\r\n", b"3\r\ncde\r\n", b"0\r\n\r\n"):
            time.sleep(0.1)
            yield part

    with scripted_server(answer) as server, connected(server.port) as connection:
        sent = time.perf_counter()
        reply = connection.exchange(REQUEST)
    assert reply.body == b"abcde"
    (first, first_at), (second, second_at) = reply.received
    assert (first, second) == (2, 5)
    assert sent < first_at <= second_at - 0.05


@pytest.mark.parametrize(
    ("answer", "problem"), [(None, "closed the connection before"), (b"nonsense\r\n\r\n", "is not HTTP")]
)
def test_a_broken_answer_raises(answer: bytes | None, problem: str) -> None:
    with (
        scripted_server(lambda _: answer) as server,
        connected(server.port) as connection,
        pytest.raises(ConnectionBroken, match=problem),
    ):
        connection.exchange(REQUEST)


def test_the_pool_reuses_the_last_connection_and_opens_a_new_one_if_none_is_idle() -> None:
    with scripted_server(lambda _: http(200)) as server:
        pool = ConnectionPool(Target("127.0.0.1", server.port, "/"))
        first, second = pool.acquire(), pool.acquire()
        assert pool.opened == 2
        pool.release(first)
        pool.release(second)
        assert pool.acquire() is second
        assert pool.opened == 2
        pool.release(second)
        pool.close()
        assert not pool.idle
        assert first.socket.closed and second.socket.closed


def test_the_pool_drops_a_connection_that_the_server_has_closed() -> None:
    with scripted_server(lambda _: 0.0) as server:  # the server hangs up after the first request
        pool = ConnectionPool(Target("127.0.0.1", server.port, "/"))
        connection = pool.acquire()
        connection.socket.sendall(REQUEST)
        until = time.monotonic() + 10
        while not connection.stale and time.monotonic() < until:
            time.sleep(0.01)
        pool.release(connection)
        replacement = pool.acquire()
        assert replacement is not connection
        assert pool.opened == 2
        replacement.close()
