"""The protocol of a connection: offers of an upgrade, limits on heads and chunks, conformance."""

import asyncio
import json
import logging
from typing import Any

import pytest

from foveate.gateway.http_server.refusals import MAX_HEAD_BYTES, MAX_PIPELINED
from tests.support.http_connections import ByteConnection, RawAnswer, listening

pytestmark = pytest.mark.anyio

POST = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
H2C = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


def sized(body: bytes) -> bytes:
    """The rest of a request with this body."""
    return b"content-length: %d\r\n\r\n%b" % (len(body), body)


def chunked(*chunks: bytes) -> bytes:
    """The rest of a request with a body in chunks."""
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return b"transfer-encoding: chunked\r\n\r\n" + parts


def assert_refused(answer: RawAnswer, status: int) -> None:
    """Assert that this is a problem document, after which the connection is closed."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = json.loads(answer.body)
    assert problem["status"] == status and problem["detail"]
    assert answer.headers["connection"] == "close"
    assert answer.headers["date"]


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET, H2C.lower()], ids=["h2c", "websocket", "lower"])
async def test_an_offer_of_an_upgrade_is_ignored_and_its_body_kept(
    offer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head, body = POST + offer, b"image" * 20_000
    requests = (
        (head + sized(body),),
        (head, sized(body)),
        (head + sized(body)[:40], sized(body)[40:]),
        (head + chunked(b"image" * 10_000, b"image" * 10_000),),
        (head, *[bytes([byte]) for byte in chunked(b"image")], POST + sized(body)),
        (head[:70], head[70:] + sized(body)),
        (head + sized(body) + head + sized(body),),
    )
    async with listening() as served, served.connect() as connection:
        for pieces in requests:
            await connection.send(*pieces)
            answer = await connection.answer()
            assert (answer.status, answer.headers.get("connection")) == (200, None)
        await connection.answer(), await connection.answer()  # two requests had two heads
        await connection.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n", GET)
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
    assert served.bodies == [body] * 4 + [b"image", body, body, body, body]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_offer_with_expect_gets_100_and_then_the_answer() -> None:
    async with listening() as served, served.connect() as connection:
        await connection.send(POST + H2C + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        assert (await connection.answer()).status == 100
        await connection.send(b"image")
        assert (await connection.answer()).status == 200
    assert served.bodies == [b"image"]


async def test_an_offer_to_a_client_of_http_1_0_is_ignored() -> None:
    async with listening() as served:
        head = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + H2C + b"expect: 100-continue\r\n"
        answer = await served.ask(head + sized(b"image"))  # and HTTP/1.0 has no status 100
        assert (answer.status, served.bodies) == (200, [b"image"])
        assert answer.headers["connection"] == "close"
        answer = await served.ask(POST + H2C.replace(b"Upgrade,", b"close, Upgrade,") + sized(b"image"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n" + b"x-a: %b\r\n" % (b"b" * 70_000), 431),
        (b"GET /livez HTTP/1.1\r\n" + b"x-a: b\r\n" * 9_000, 431),
        (b"GET /livez?%b HTTP/1.1\r\n" % (b"q" * 70_000), 414),
        (b"GET /livez HTTP/1.1\r\n" + b"x-a: %b\r\n" % (b"b" * 60_000), 200),
    ],
    ids=["long", "many", "url", "allowed"],
)
async def test_a_head_over_the_limit_is_refused_however_it_arrives(head: bytes, status: int) -> None:
    request = head + b"host: x\r\n\r\n"
    half = len(request) // 2
    async with listening() as served:
        cases: tuple[tuple[int, tuple[bytes, ...]], ...] = (
            (0, (request,)),
            (0, (request[:half], request[half:])),
            (1, (GET + request,)),
            (1, (POST + b"content-length: 60000\r\n\r\n", b"b" * 60_000 + request[:50], request[50:])),
            (1, (POST + sized(b"b" * 100_000)[:1000], sized(b"b" * 100_000)[1000:] + request)),
        )
        for others, pieces in cases:
            async with served.connect() as connection:
                await connection.send(*pieces)
                assert [(await connection.answer()).status for _ in range(others)] == [200] * others
                answer = await connection.answer()
                if status == 200:
                    assert answer.status == 200
                else:
                    assert_refused(answer, status)
                    assert await connection.rest() == b""


async def test_an_endless_head_is_refused() -> None:
    async with listening() as served, served.connect() as connection:
        await connection.send(POST)
        for _ in range(MAX_HEAD_BYTES // 1000 + 2):
            connection.writer.write(b"x-a: " + b"b" * 1000 + b"\r\n")
        await connection.writer.drain()
        assert_refused(await connection.answer(), 431)
        connection.writer.write(b"b" * 1_000_000)  # discarded: no reset can lose the answer
        assert await connection.rest() == b""


async def test_a_large_body_is_not_a_head() -> None:
    async with listening() as served, served.connect() as connection:
        for _ in range(3):
            await connection.send(POST + sized(b"b" * 300_000), b"\r\n")
            assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost:\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost: [\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost: [::1]:8000\r\n\r\n", 200),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 505),
        (b"GET /livez HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET http://a/livez HTTP/1.1\r\nhost: a\r\n\r\n", 200),
        (b"GET http://a HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET http://a?q=1 HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET livez HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n\x16\x03\x01", 501),
        (b"GET /livez HTTP/1.1\r\nhost: a\r\nx-a: b\r\n folded\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\nhost: a\n\n", 400),
        (b"get /livez HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /li\0vez HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /li\xffvez HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nhost: a\r\nx-a: b\0c\r\n\r\n", 400),
        (b"GET /%zz%00%ff HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET /models/%2e%2e%2f%00/ladder HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nimage", 400),
        (POST + b"content-length: 5, 5\r\n\r\nimage", 400),
        (POST + b"content-length: +5\r\n\r\nimage", 400),
        (POST + b"content-length: 99999999999999999999999\r\n\r\nimage", 400),
        (POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", 400),
        (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: gzip\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: identity\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: Chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\n", 200),
        (POST + b"transfer-encoding: chunked\r\n\r\n5;a=b;c\r\nimage\r\n0\r\nx-plan: warp:9\r\n\r\n", 200),
        (POST + b"transfer-encoding: chunked\r\n\r\n5\r\nimage0\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\nimage", 400),
    ],
)  # fmt: skip
async def test_requests_are_answered_as_http_demands(
    request_bytes: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening() as served:
        answer = await served.ask(request_bytes)
        assert (await served.ask(GET)).status == 200
    assert answer.status == status, answer
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_refused_request_waits_for_the_answers_before_it() -> None:
    for refused in (b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", POST + b"transfer-encoding: gzip\r\n\r\n"):
        async with listening() as served, served.connect() as connection:
            served.runner.gate.clear()
            await connection.send(POST + sized(b"first") + POST + sized(b"second") + refused)
            served.runner.gate.set()
            assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
            assert_refused(await connection.answer(), 501 if b"gzip" in refused else 400)
            assert await connection.rest() == b""
        assert served.bodies == [b"first", b"second"]


async def test_requests_that_wait_on_one_connection_are_bounded() -> None:
    async with listening() as served, served.connect() as connection:
        served.runner.gate.clear()
        await connection.send(POST + sized(b"first") + GET * 8_000)
        protocol: Any = next(iter(served.server.server_state.connections))
        assert len(protocol.pipeline) <= MAX_PIPELINED + 1
        served.runner.gate.set()
        answers = [await connection.answer() for _ in range(MAX_PIPELINED + 2)]
        assert {answer.status for answer in answers[:-1]} == {200}
        assert_refused(answers[-1], 429)
        assert await connection.rest() == b""


async def send_until_answered(connection: ByteConnection, data: bytes, count: int) -> RawAnswer:
    """Send the data again and again; the answer, which must come before `count` times."""
    answering = asyncio.ensure_future(connection.answer())
    for _ in range(count):
        if answering.done():
            break
        connection.writer.write(data)
        await connection.writer.drain()
        await asyncio.sleep(0)
    return await answering


@pytest.mark.parametrize(
    ("start", "more", "count"),
    [
        (b"", b"1\r\nx\r\n" * 100, 1000),
        (b"5;", b"extension" * 1000, 1000),
        (b"5\r\nimage\r\n0\r\n", b"x-trailer: value\r\n" * 100, 1000),
        (b"5\r\nimage\r\n0\r\nx-trailer: ", b"value" * 1000, 1000),
    ],
    ids=["tiny", "extension", "trailers", "trailer"],
)
async def test_endless_framing_of_chunks_is_refused(start: bytes, more: bytes, count: int) -> None:
    async with listening() as served, served.connect() as connection:
        await connection.send(POST + b"transfer-encoding: chunked\r\n\r\n" + start)
        assert_refused(await send_until_answered(connection, more, count), 400)
        assert (await served.ask(GET)).status == 200
    assert served.bodies == []


async def test_trailers_are_not_headers() -> None:
    async with listening() as served:
        body = b"5\r\nimage\r\n0\r\nx-request-id: trailer\r\n\r\n"
        answer = await served.ask(POST + b"transfer-encoding: chunked\r\n\r\n" + body)
    assert answer.headers["x-request-id"] != "trailer"


async def test_a_refused_upload_gets_its_answer_although_the_connection_is_closed() -> None:
    async with listening(max_body_bytes=1000) as served:
        for _ in range(5):
            async with served.connect() as connection:
                await connection.send(POST + b"connection: close\r\ncontent-length: 8000000\r\n\r\n")
                for _ in range(80):
                    connection.writer.write(b"b" * 100_000)
                    await connection.writer.drain()
                assert (await connection.answer()).status == 413
                assert await connection.rest() == b""
