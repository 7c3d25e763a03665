"""The table of connections: the longest-waiting one is closed for room, and each has a time limit."""

import asyncio
import logging
import resource
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foveate.core.settings import Settings
from foveate.gateway.http_server.connections import (
    RESERVED_CONNECTIONS,
    ConnectionLimits,
    ConnectionTable,
    default_max_connections,
)
from tests.support.http_connections import ByteConnection, ListeningServer, listening

pytestmark = pytest.mark.anyio

POST = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: 5\r\n\r\nimage"
GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
HALF_HEAD = b"POST /classify HTTP/1.1\r\nhost: x\r\nx-a: "


class TableEntry:
    """A connection that records how it was closed."""

    def __init__(self) -> None:
        self.closed = ""

    def expire(self) -> None:
        self.closed = "expired"

    def cut(self) -> None:
        self.closed = "cut"

    def make_room(self) -> None:
        self.closed = "for room"


class Time:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def table(max_connections: int = 2) -> tuple[ConnectionTable, Time]:
    clock = Time()
    return ConnectionTable(ConnectionLimits(max_connections, 10, 75, 30), clock), clock


def test_the_longest_waiting_connection_is_closed_for_room_and_idle_ones_last() -> None:
    connections, clock = table()
    entries = [TableEntry() for _ in range(connections.limits.max_open)]
    for entry in entries:
        connections.add(entry)
    for answered in entries[:3]:
        connections.begin(answered)
        connections.await_request(answered)
    connections.begin(entries[3])  # in flight
    clock.now = 2.0
    for _ in range(len(entries) - 4):
        connections.add(TableEntry())
    assert [entry.closed for entry in entries] == [""] * 4 + ["for room"] * (len(entries) - 4)


def test_idle_connections_are_closed_for_room_the_oldest_first() -> None:
    connections, _ = table()
    entries = [TableEntry() for _ in range(connections.limits.max_open)]
    for entry in entries:
        connections.add(entry)
    for entry in (*entries[1:], entries[0]):
        connections.begin(entry)
        connections.await_request(entry)
    connections.add(TableEntry())
    assert [entry for entry in entries if entry.closed] == [entries[1]]


def test_an_arriving_request_is_not_closed_for_room_while_others_wait() -> None:
    connections, clock = table()
    idle = [TableEntry() for _ in range(connections.limits.max_open)]
    for entry in idle:
        connections.add(entry)
        connections.begin(entry)
        connections.await_request(entry)
    answered = idle.pop()
    connections.await_end(answered)
    clock.now = 20.0
    arriving = [TableEntry() for _ in range(10)]
    for entry in arriving:
        connections.add(entry)
    assert answered.closed
    assert [entry.closed for entry in idle[:9]] == ["for room"] * 9
    assert not any(entry.closed for entry in (*arriving, *idle[9:]))


def test_without_a_waiting_connection_the_new_one_is_closed() -> None:
    connections, _ = table()
    for _ in range(connections.limits.max_open):
        entry = TableEntry()
        connections.add(entry)
        connections.begin(entry)
    late = TableEntry()
    connections.add(late)
    assert late.closed == "for room"
    assert connections.is_full


def test_connections_that_wait_do_not_make_the_server_full() -> None:
    connections, _ = table(max_connections=1)
    for _ in range(20):
        connections.add(TableEntry())
    assert not connections.is_full
    busy = next(iter(connections.opening))
    connections.begin(busy)
    assert connections.is_full
    connections.await_request(busy)
    assert not connections.is_full


def test_connections_expire_and_one_warning_names_their_number(caplog: pytest.LogCaptureFixture) -> None:
    connections, clock = table()
    half, idle, slow, busy = (TableEntry() for _ in range(4))
    for entry in (half, idle, slow, busy):
        connections.add(entry)
    connections.begin(busy)
    connections.begin(idle)
    connections.await_request(idle)
    connections.begin(slow)
    connections.await_reader(slow, 16 * 1024 * 10)
    closed = {}
    for clock.now in (9.9, 10, 39, 41, 74, 76):
        connections.close_expired()
        closed[clock.now] = [entry.closed for entry in (half, idle, slow, busy)]
    assert closed[9.9] == ["", "", "", ""]
    assert closed[10] == closed[39] == ["expired", "", "", ""]
    assert closed[41] == closed[74] == ["expired", "", "cut", ""]
    assert closed[76] == ["expired", "expired", "cut", ""]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["1 without a complete request head" in text for text in warnings] == [True, False]
    assert all("FOVEATE_MAX_CONNECTIONS" in text for text in warnings)


def test_warnings_are_rare_under_a_flood(caplog: pytest.LogCaptureFixture) -> None:
    connections, clock = table()
    for clock.now in range(100):
        for _ in range(100):
            connections.add(TableEntry())
        connections.close_expired()
    assert 5 <= len(caplog.records) <= 12


def test_the_default_limit_leaves_files_for_other_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, limit in ((1024, 736), (10**6, 8192), (resource.RLIM_INFINITY, 8192), (16, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert default_max_connections() == limit
        limits = ConnectionLimits.of(Settings())
        if files == 1024:
            assert limits.max_open + limits.backlog < 900
    assert ConnectionLimits.of(Settings(max_connections=7)).max_connections == 7


async def half_heads(served: ListeningServer, stack: AsyncExitStack, count: int) -> list[ByteConnection]:
    """Connections on which half of a head has been sent."""
    connections = [await stack.enter_async_context(served.connect()) for _ in range(count)]
    for connection in connections:
        connection.writer.write(HALF_HEAD)
    return connections


async def test_half_heads_do_not_stop_requests_or_probes(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(max_connections=8) as served, AsyncExitStack() as stack:
        halves = await half_heads(served, stack, 100)
        async with served.client() as client:
            for _ in range(20):
                assert (await client.get("/livez")).status_code == 200
                response = await client.post(
                    "/classify", content=b"image", headers={"content-type": "image/png"}
                )
                assert response.status_code == 200
                await half_heads(served, stack, 5)
        closed = await halves[-1].answer()
        assert (closed.status, closed.headers["retry-after"]) == (503, "1")
        await asyncio.sleep(1.2)
    assert len([record for record in caplog.records if "to make room" in record.getMessage()]) == 1


async def test_with_all_connections_busy_probes_are_answered_and_requests_get_503() -> None:
    async with listening(max_connections=4) as served, AsyncExitStack() as stack:
        served.runner.gate.clear()
        busy = [await stack.enter_async_context(served.connect()) for _ in range(4)]
        for connection in busy:
            await connection.send(POST)
        await half_heads(served, stack, 2 * RESERVED_CONNECTIONS)
        for path in (b"/livez", b"/readyz", b"/metrics", b"/metrics?a=b"):
            assert (await served.ask(GET.replace(b"/livez", path))).status == 200
        refused = await served.ask(POST)
        assert (refused.status, refused.headers["connection"]) == (503, "close")
        assert int(refused.headers["retry-after"]) >= 1
        served.runner.gate.set()
        assert [(await connection.answer()).status for connection in busy] == [200] * 4
        assert (await served.ask(POST)).status == 200


async def test_a_head_that_does_not_arrive_in_time_gets_408() -> None:
    async with listening(head_timeout_s=0.2) as served, AsyncExitStack() as stack:
        silent, half, kept = [await stack.enter_async_context(served.connect()) for _ in range(3)]
        half.writer.write(HALF_HEAD)
        await kept.send(GET + HALF_HEAD)
        assert (await kept.answer()).status == 200
        for connection in (half, kept):
            answer = await connection.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert await connection.rest() == b""
        assert await silent.rest() == b""


async def test_a_trickled_head_gets_408() -> None:
    async with listening(head_timeout_s=0.5) as served, served.connect() as connection:
        answering = asyncio.ensure_future(connection.answer())
        connection.writer.write(HALF_HEAD)
        while not answering.done():
            connection.writer.write(b"a")
            await asyncio.sleep(0.05)
        assert (await answering).status == 408


async def test_empty_lines_without_end_are_cut() -> None:
    async with listening(head_timeout_s=0.3) as served, served.connect() as connection:
        await connection.send(GET)
        assert (await connection.answer()).status == 200
        ended = asyncio.ensure_future(connection.rest())
        while not ended.done():
            connection.writer.write(b"\r\n")
            await asyncio.sleep(0.05)
        assert await ended == b""


async def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    async with listening(keep_alive_timeout_s=1) as served, served.connect() as connection:
        for _ in range(2):
            await connection.send(GET)
            assert (await connection.answer()).status == 200
            await asyncio.sleep(0.5)
        assert await connection.rest() == b""


async def large_answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An application whose answers have more bytes than the system buffers."""
    if scope["type"] == "http":
        await Response(bytes(30_000_000))(scope, receive, send)


async def test_a_client_that_does_not_read_its_answer_is_cut() -> None:
    async with listening(large_answer, send_timeout_s=0.5) as served, AsyncExitStack() as stack:
        table = served.server.connections
        table.limits = replace(table.limits, min_send_rate=10**9)
        for last in (b"", b"connection: close\r\n"):
            connection = await stack.enter_async_context(served.connect())
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await connection.send(GET + GET + GET[:-2] + last + b"\r\n")
        async with asyncio.timeout(30):
            while table.open:
                await asyncio.sleep(0.05)
        assert not (table.opening or table.idle or table.discarding or table.sending)


async def test_a_client_that_reads_a_large_answer_slowly_gets_all_of_it() -> None:
    async with listening(large_answer, send_timeout_s=1, keep_alive_timeout_s=1) as served:
        for last in (b"", b"connection: close\r\n"):
            async with served.connect() as connection:
                await connection.send(GET[:-2] + last + b"\r\n")
                await asyncio.sleep(2.5)
                assert len((await connection.answer()).body) == 30_000_000


async def test_nothing_is_left_of_closed_connections() -> None:
    async with listening(max_connections=8) as served:
        table = served.server.connections
        for pieces in ((GET,), (HALF_HEAD,), (b"HELLO\r\n\r\n",), (POST[:-2],), ()):
            async with served.connect() as connection:
                await connection.send(*pieces)
        async with asyncio.timeout(10):
            while table.open:
                await asyncio.sleep(0.01)
        assert not (table.opening or table.idle or table.discarding or table.sending)
