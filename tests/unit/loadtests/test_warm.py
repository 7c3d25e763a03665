"""Waiting until a server is warm."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtests.warm import wait_warm, warm_ratio


def metrics(*ratios: float) -> str:
    rows = (f'foveate_warm_ratio{{model="m{i}"}} {ratio}' for i, ratio in enumerate(ratios))
    return "\n".join(["# HELP foveate_warm_ratio x", *rows, "foveate_waiting 0.5", ""])


@contextmanager
def serving(*texts: str) -> Iterator[str]:
    """A server whose /metrics gives these texts in turn, and the last one for ever; none: 404."""
    left = list(texts)

    class Metrics404(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (left.pop(0) if len(left) > 1 else left[0]).encode() if left else b""
            self.send_response(200 if left else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics404)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/classify"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_coldest_model_counts() -> None:
    assert warm_ratio(metrics(1.0, 0.25)) == 0.25
    assert warm_ratio("foveate_waiting 0.5\n") == 1.0


def test_it_returns_once_all_models_are_warm() -> None:
    with serving(metrics(1.0, 0.5), metrics(1.0, 1.0)) as url:
        assert wait_warm(url) < 60
    with serving() as url:
        assert wait_warm(url) < 60, "a server without metrics"


def test_a_server_that_stays_cold_is_an_error() -> None:
    with serving(metrics(0.5)) as url, pytest.raises(TimeoutError, match=r"did not warm up within 0\.1 s"):
        wait_warm(url, 0.1)
