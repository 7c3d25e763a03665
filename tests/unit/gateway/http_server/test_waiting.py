"""Connections that wait: for a head, for the next request, for the client to read, for room."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foveate.gateway.http_server.connections import RESERVED_CONNECTIONS
from tests.support.http_connections import ByteConnection, ListeningServer, listening

pytestmark = pytest.mark.anyio

POST = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: 5\r\n\r\nimage"
GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
HALF_HEAD = b"POST /classify HTTP/1.1\r\nhost: x\r\nx-a: "


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


def large_answer(_: Request) -> Response:
    """More bytes than the system buffers."""
    return Response(bytes(30_000_000))


LARGE = Route("/livez", large_answer)
"""In place of the gateway's route."""


async def test_a_client_that_does_not_read_its_answer_is_cut() -> None:
    async with listening(LARGE, send_timeout_s=0.5) as served, AsyncExitStack() as stack:
        table = served.server.connections
        table.limits = replace(table.limits, min_send_rate=10**9)
        for last in (b"", b"connection: close\r\n"):
            connection = await stack.enter_async_context(served.connect())
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await connection.send(GET + GET + GET[:-2] + last + b"\r\n")
        async with asyncio.timeout(30):
            while table.open:
                await asyncio.sleep(0.05)
        assert not (table.opening or table.idle or table.discarding or table.closing or table.sending)


async def test_a_client_that_reads_a_large_answer_slowly_gets_all_of_it() -> None:
    async with listening(LARGE, send_timeout_s=1, keep_alive_timeout_s=1) as served:
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
        assert not (table.opening or table.idle or table.discarding or table.closing or table.sending)


async def test_a_server_that_stops_does_not_wait_for_refused_clients() -> None:
    async with listening() as served, served.connect() as connection:
        await connection.send(b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz")
        assert (await connection.answer()).status == 400
        async with asyncio.timeout(4):  # less than the time for which answers are sent at the end
            served.server.should_exit = True
            while served.server.connections.open:
                await asyncio.sleep(0.01)
