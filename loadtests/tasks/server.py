"""Run `foveate serve` in a separate process, and send single requests to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loadtests.report import UNCACHED
from loadtests.warm import wait_warm


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One answer with status 200."""

    seconds: float
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


@contextmanager
def serving(*options: str, environment: Mapping[str, str] = UNCACHED) -> Iterator[str]:
    """Run `foveate serve` with these options and environment variables; yield its URL once it is warm.

    Raises RuntimeError if it does not become ready, and TimeoutError if it does not warm up. The server is
    stopped at the end.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "foveate.gateway.cli", "serve", "--port", str(port), *options]
    process = subprocess.Popen(  # noqa: S603
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/readyz", process)
        wait_warm(url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def post(url: str, body: bytes, kind: str, **headers: str) -> HttpResponse:
    """POST a body; keyword arguments are headers, with `_` for `-`. Raises HTTPError for an error status."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"content-type": kind}
    request = urllib.request.Request(url, body, sent)  # noqa: S310
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        data = response.read()
        return HttpResponse(time.perf_counter() - started, data, dict(response.headers))


def _wait(url: str, process: subprocess.Popen[bytes], limit_s: float = 300) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise RuntimeError(f"{url} did not become ready within {limit_s:g} s")
