"""A server process for tests, as people start it."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT

import httpx

FOVEATE = str(Path(sys.executable).with_name("foveate"))
PATIENCE_S = 120


@dataclass(frozen=True)
class Serving:
    """A server process that is ready, and a client for it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: "Log"

    def classify(self, data: bytes, headers: Mapping[str, str] | None = None) -> httpx.Response:
        sent = {"content-type": "image/jpeg"} | dict(headers or {})
        return self.client.post("/classify", content=data, headers=sent)


def environment(cache: Path) -> dict[str, str]:
    """Ours, without settings somebody may have exported, and with a cache and profiles of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOVEATE_")}
    return kept | {"XDG_CACHE_HOME": str(cache), "XDG_DATA_HOME": str(cache / "data")}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


class Log:
    """What the server prints, kept as it comes, so that a test can wait for a line of it."""

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
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended or words in self.text, PATIENCE_S)
            assert words in self.text, self.text


PLACES = {"local": (), "ray": ("--cluster", "ray")}
"""Flags that have the models run in the server's process, or on Ray."""


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Serving]:
    """`foveate serve` on a free port; ended with the test."""
    port = free_port()
    command = [FOVEATE, "serve", "--precision", "fp32", "--threads", "1", "--port", str(port), *flags]
    with (
        subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, env=environment(folder)) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as client,
    ):
        try:
            log = Log(process)
            log.wait_for("serving on http")
            assert client.get("/readyz").status_code == 200
            yield Serving(process, client, log)
        finally:
            # On Ray there are others to be ended, which it does itself.
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()
