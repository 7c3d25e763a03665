"""A server process for tests, started with the command line."""

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT

import httpx

FOVEATE = str(Path(sys.executable).with_name("foveate"))
TIMEOUT_S = 120


@dataclass(frozen=True)
class ServerProcess:
    """A server process that is ready, and a client for it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: "ServerLog"

    def classify(self, data: bytes, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Send an image to /classify."""
        all_headers = {"content-type": "image/jpeg"} | dict(headers or {})
        return self.client.post("/classify", content=data, headers=all_headers)


def environment(cache: Path) -> dict[str, str]:
    """The environment without settings of Foveate or of a Ray, with cache and profiles in this folder."""
    settings = ("FOVEATE_", "RAY_SERVE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return inherited | {"XDG_CACHE_HOME": str(cache), "XDG_DATA_HOME": str(cache / "data")}


def free_port() -> int:
    """A port that no process listens on.

    It lies below Linux's ephemeral ports: Ray opens dozens of those before the server listens.
    """
    for port in random.sample(range(30_000, 32_768), 100):
        with socket.socket() as listening, suppress(OSError):
            listening.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports in a row are taken")


class ServerLog:
    """The output of the server, read while it runs, so that a test can wait for a line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.text, self.changed, self.ended = "", threading.Condition(), False
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            with self.changed:
                self.text += line.decode()
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for(self, words: str) -> None:
        """Return once the output contains these words."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended or words in self.text, TIMEOUT_S)
            assert words in self.text, self.text


CLUSTERS = {"local": (), "ray": ("--cluster", "ray")}
"""Flags that run the models in the server's process, or on Ray."""


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    """`foveate serve` on a free port, stopped at the end."""
    port = free_port()
    command = [FOVEATE, "serve", "--precision", "fp32", "--threads", "1", "--port", str(port), *flags]
    with (
        subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, env=environment(folder)) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, trust_env=False) as client,
    ):
        try:
            log = ServerLog(process)
            log.wait_for("serving on http")
            assert client.get("/readyz").status_code == 200
            yield ServerProcess(process, client, log)
        finally:
            # The server ends the processes of Ray itself.
            process.terminate()
            try:
                process.wait(TIMEOUT_S)
            finally:
                process.kill()
