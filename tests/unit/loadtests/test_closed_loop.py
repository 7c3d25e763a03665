"""The closed-loop client against a real socket."""

import asyncio

import pytest

from loadtests.closed_loop import ClosedLoopResult, drive, request_bytes
from tests.support.scripted_server import http, scripted_server

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [http(200, b"hi"), CHUNKED])
def test_each_connection_sends_again_after_its_answer(answer: bytes) -> None:
    request = request_bytes("/classify", b"jpeg")
    with scripted_server(lambda _: answer) as server:
        result = asyncio.run(drive(server.port, request, 3, 0.3))
        assert server.connections == 3
        assert set(server.requests) == {request}
        assert len(result.latencies_s) == len(server.requests) > 3
    assert result.failures == 0
    assert result.seconds >= 0.3
    assert result.per_second == pytest.approx(len(result.latencies_s) / result.seconds)


def test_other_statuses_are_failures() -> None:
    with scripted_server(lambda n: http(429) if n % 2 else http(200)) as server:
        result = asyncio.run(drive(server.port, request_bytes("/", b""), 1, 0.2))
    assert abs(len(result.latencies_s) - result.failures) <= 1 < result.failures


def test_a_closed_connection_ends_its_loop() -> None:
    with scripted_server(lambda _: None) as server:
        result = asyncio.run(drive(server.port, request_bytes("/", b""), 2, 30))
    assert result.latencies_s == [] and result.seconds < 10


def test_the_median_is_in_milliseconds() -> None:
    assert ClosedLoopResult(1.0, [0.3, 0.1, 0.2]).p50_ms == pytest.approx(200)
