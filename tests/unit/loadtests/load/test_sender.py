"""Open-loop sending: the schedule does not wait for answers, and the probe explains what is wrong."""

import math

import pytest

from foveate.core.errors import SetupError
from loadtests.load.records import Exchange
from loadtests.load.sender import ScheduledRequest, Sender, probe
from loadtests.load.target import Target, request_head
from tests.support.scripted_server import http, scripted_server

ANSWER = http(200, b'{"predictions": [{"label": "fox"}]}')


def send(port: int, times: list[float], timeout_s: float) -> list[Exchange]:
    target, exchanges = Target("127.0.0.1", port, "/classify"), list[Exchange]()
    requests = [ScheduledRequest(n, at, request_head(target, {}), b"jpeg") for n, at in enumerate(times)]
    Sender(target, timeout_s, exchanges.append).send_all(requests)
    return sorted(exchanges, key=lambda exchange: exchange.index)


def test_a_server_that_does_not_answer_does_not_delay_later_requests() -> None:
    with scripted_server(lambda n: 5.0 if n < 3 else ANSWER) as server:
        exchanges = send(server.port, [0.0, 0.05, 0.1, 0.15, 0.2], 0.6)
    assert [e.status for e in exchanges] == [0, 0, 0, 200, 200]
    assert all(math.isnan(e.ended) and e.problem == "no answer within 0.6 s" for e in exchanges[:3])
    assert all(0 <= e.sent - e.at < 0.3 for e in exchanges)
    assert all(e.ended >= e.sent for e in exchanges[3:])


def test_a_broken_connection_is_a_problem_of_one_request() -> None:
    with scripted_server(lambda n: None if n == 1 else ANSWER) as server:
        exchanges = send(server.port, [0.0, 0.1, 0.2], 5.0)
    assert [e.status for e in exchanges] == [200, 0, 200]
    assert "closed the connection" in exchanges[1].problem
    assert not math.isnan(exchanges[1].ended)


def probed(port: int, timeout_s: float = 5.0) -> None:
    target = Target("127.0.0.1", port, "/classify")
    probe(target, ScheduledRequest(0, 0.0, request_head(target, {}), b"jpeg"), timeout_s)


def test_the_probe_waits_while_the_server_is_busy() -> None:
    with scripted_server(lambda n: http(429) if n < 2 else ANSWER) as server:
        probed(server.port)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "no server answers at http://127.0.0.1"),
        (http(422, b"not a JPEG"), "answered 422 to the first request: not a JPEG"),
        (http(200, b"<html>"), "the parser cannot read the answer of .*: <html>"),
    ],
)
def test_the_probe_explains_what_is_wrong(answer: bytes | None, problem: str) -> None:
    with scripted_server(lambda _: answer) as server, pytest.raises(SetupError, match=problem):
        probed(server.port)


def test_the_probe_gives_up_on_a_server_that_stays_busy() -> None:
    with scripted_server(lambda _: http(503)) as server, pytest.raises(SetupError, match="answered 503"):
        probed(server.port, 0.5)
