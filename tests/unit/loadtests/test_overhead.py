"""The bench of the serving overhead: its server process, its medians and its page."""

import subprocess
import sys

import pytest

from loadtests.overhead import load_server, medians, page, sample_jpeg, served, wait_ready
from loadtests.report import read
from tests.support.scripted_server import http, scripted_server


def test_a_served_process_answers_and_ends() -> None:
    with served("loadtests.echo", "{port}") as port:
        result = load_server(port, "/echo", b"jpeg", 2, 0.3)
    assert result.failures == 0 and len(result.latencies_s) > 2
    with pytest.raises(OSError):
        load_server(port, "/echo", b"jpeg", 1, 0.1)


def test_a_failed_request_ends_the_bench() -> None:
    with scripted_server(lambda _: http(503)) as server, pytest.raises(SystemExit, match="requests failed"):
        load_server(server.port, "/", b"jpeg", 1, 0.1)


def test_a_server_that_ends_is_not_ready() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(SystemExit, match="did not become ready"):
        wait_ready(1, ended)


def test_medians_are_over_the_rounds_that_have_a_figure() -> None:
    assert medians([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.00004}]) == {"a": 2.0, "b": 5.0}


def test_the_image_has_the_size_of_a_photograph() -> None:
    assert 90_000 < len(sample_jpeg()) <= 108_000


def test_the_page_is_filled_by_the_committed_figures() -> None:
    text = page(read("overhead"))
    assert (
        "| throughput at 32 connections, relative to the raw loop | 0.831 | at least 0.95 | **missed** |"
        in text
    )
    assert "not measured" not in text
