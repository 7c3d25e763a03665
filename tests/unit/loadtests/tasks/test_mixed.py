"""Mixed traffic against a real socket."""

import math

import orjson
import pytest

from loadtests.load.records import Exchange
from loadtests.tasks.mixed import TrafficClass, capacity, offer, score
from tests.support.scripted_server import http, scripted_server

IMAGES = TrafficClass("images", "/classify", "image/jpeg", 300, (b"first", b"second"))
CLIPS = TrafficClass("clips", "/classify", "video/mp4", 1000, (b"video",))


def body(quality: float | None) -> bytes:
    return orjson.dumps({"compute": {"quality": quality}})


def exchange(status: int, ended: float, answer: bytes = b"") -> Exchange:
    return Exchange(0, 1.0, 1.0, ended, status, answer, "")


def test_answers_in_time_refusals_and_the_rest_are_counted() -> None:
    exchanges = [
        exchange(200, 1.2, body(1.0)),
        exchange(200, 1.25, body(0.5)),
        exchange(200, 1.4, body(1.0)),
        exchange(429, 1.0),
        exchange(503, 1.0),
        exchange(504, 1.5),
    ]
    result = score(IMAGES, 10.0, exchanges)
    assert (result.offered, result.in_time, result.refused, result.late) == (6, 2, 2, 2)
    assert result.quality == pytest.approx(0.75)
    assert result.attainment == pytest.approx(1 / 3)
    assert math.isnan(score(IMAGES, 10.0, exchanges[3:]).quality)


def test_all_kinds_are_sent_together_with_their_deadlines() -> None:
    with scripted_server(lambda _: http(200, body(0.9))) as server:
        url = f"http://127.0.0.1:{server.port}"
        images, clips = offer(url, [(IMAGES, 40.0), (CLIPS, 20.0)], 1.0, seed=0)
        requests = list(server.requests)
    assert images.attainment == clips.attainment == 1
    assert images.offered + clips.offered == len(requests)
    assert clips.offered == sum(b"content-type: video/mp4" in request for request in requests)
    assert images.offered == sum(b"x-slo-ms: 300" in request for request in requests)


def test_the_capacity_is_measured_at_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.tasks.mixed.CLOSED_S", 0.2)
    with scripted_server(lambda _: http(200, body(1.0))) as server:
        assert capacity(server.port, IMAGES) > 0
        assert all(b"x-plan: full" in request for request in server.requests)
