"""A stand-in for Prometheus' HTTP API: answers each query with a result that the test sets."""

import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class PrometheusApi:
    """The results by query, and the parameters of all requests."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.bodies: dict[tuple[str, str], bytes] = {}
        """By endpoint and query; others are answered with status 400."""
        self.requests: list[dict[str, str]] = []

    def set_result(self, query: str, *series: Any, kind: str = "vector") -> None:
        """Answer a query with these series; a matrix is the result of a range query."""
        endpoint = "query_range" if kind == "matrix" else "query"
        result = series[0] if kind == "scalar" else list(series)
        self.bodies[endpoint, query] = json.dumps({"data": {"resultType": kind, "result": result}}).encode()

    def set_value(self, query: str, value: float) -> None:
        """Answer an instant query with one series of this value."""
        self.set_result(query, {"value": [0, str(value)]})

    def set_range(self, query: str, *samples: tuple[float, float]) -> None:
        """Answer a range query with one series of these times and values."""
        self.set_result(query, {"values": [[at, str(value)] for at, value in samples]}, kind="matrix")


@contextmanager
def prometheus_api() -> Iterator[PrometheusApi]:
    """A running server."""

    class PrometheusHandler(BaseHTTPRequestHandler):
        """Answers GET requests."""

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            parameters = dict(urllib.parse.parse_qsl(url.query))
            endpoint = url.path.removeprefix("/api/v1/")
            api.requests.append(parameters | {"endpoint": endpoint})
            body = api.bodies.get((endpoint, parameters["query"]))
            self.send_response(400 if body is None else 200)
            self.end_headers()
            self.wfile.write(b'{"error": "parse error"}' if body is None else body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), PrometheusHandler) as server:
        api = PrometheusApi(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
