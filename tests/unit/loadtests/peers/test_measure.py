"""Measuring a server: free ports, closed loops and the raw loop."""

import socket
from pathlib import Path

import pytest

from loadtests.load.images import catalogue
from loadtests.peers.config import PeerConfig
from loadtests.peers.measure import (
    CONNECTIONS,
    PORTS,
    BenchSetup,
    closed_loop,
    closed_loops,
    on_free_port,
    raw,
)
from tests.support.peer_models import tiny_config
from tests.support.scripted_server import http, scripted_server

CONFIG = PeerConfig("tiny.safetensors", "fp32", 0, 200.0, 20.0)


def test_a_port_and_the_next_four_are_free() -> None:
    first = on_free_port(CONFIG)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.port + PORTS - 1))
        second = on_free_port(CONFIG)
    assert second.port >= first.port + PORTS
    assert first.token != second.token


def test_closed_loops_count_answers_and_failures() -> None:
    with scripted_server(lambda n: http(503) if n % 2 else http(200)) as server:
        figures = closed_loops(f"http://127.0.0.1:{server.port}/classify", b"jpeg", 0.2)
    assert set(figures) == {
        f"closed_{c}_{kind}" for c in CONNECTIONS for kind in ("per_s", "p50_ms", "failures")
    }
    assert all(value > 0 for value in figures.values())


def test_a_server_that_answers_nothing_is_an_error() -> None:
    with scripted_server(lambda _: http(503)) as server, pytest.raises(RuntimeError, match="no request at 2"):
        closed_loop(f"http://127.0.0.1:{server.port}/classify", b"jpeg", 2, 0.1)


def test_a_server_that_never_answers_is_a_timeout() -> None:
    with scripted_server(lambda _: 3.0) as server, pytest.raises(TimeoutError):
        closed_loop(f"http://127.0.0.1:{server.port}/classify", b"jpeg", 1, 0.1, grace_s=0.3)


def test_the_raw_loop_measures_rate_and_accuracy(tmp_path: Path) -> None:
    weights = tiny_config(tmp_path).weights
    setup = BenchSetup(weights, "fp32", catalogue("scene", 4, 0), "scene", 0.2, (), (), tmp_path)
    figures = raw(setup)
    assert figures["raw_per_s"] == max(figures["raw_1_per_s"], figures["raw_8_per_s"]) > 0
    assert 0 <= figures["raw_8_accuracy"] <= 1
