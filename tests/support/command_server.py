"""`foveate serve` in a process of its own, with models without weights whose media are commands.

Run as `python -m tests.support.command_server MODEL ...`, with settings in FOVEATE_* variables.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.cli import serve_local
from tests.support.fake_runner import FakeRunner

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0


class SleepRunner(FakeRunner):
    """Sleeps for as long as its media say, as in `sleep 3`; all other media do nothing."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        for item in batch:
            words = bytes(item).split()
            if words[:1] == [b"sleep"]:
                time.sleep(float(words[1]))
        return super().run(batch, plan)


class CommandServer:
    """A server process, its log and its clients."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.url, self.log = process, f"http://127.0.0.1:{port}", log

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, timeout=TIMEOUT_S, trust_env=False,
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=0),
        )  # fmt: skip

    def sigterm(self) -> float:
        """Send SIGTERM. Returns the monotonic time."""
        self.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    def lines(self) -> list[str]:
        """The lines of the log so far."""
        return self.log.read_text().splitlines()


@contextmanager
def serving_commands(folder: Path, port: int, *models: str, **settings: object) -> Iterator[CommandServer]:
    """A server of these models on this port, killed at the end if it still runs."""
    variables = {f"FOVEATE_{name.upper()}": str(value) for name, value in settings.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FOVEATE_")}
    log, command = folder / "log", [sys.executable, "-m", "tests.support.command_server", *models]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output,
            env=inherited | variables | {"FOVEATE_PORT": str(port), "FOVEATE_CACHE_BYTES": "0"},
        ) as process,
    ):  # fmt: skip
        server = CommandServer(process, port, log)
        try:
            wait_until_ready(server)
            yield server
        finally:
            process.kill()


def wait_until_ready(server: CommandServer) -> None:
    """Return once the server has said its address and is ready."""
    until = time.monotonic() + TIMEOUT_S
    while server.process.poll() is None and time.monotonic() < until:
        try:
            ready = httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200
            if ready and any("serving on http" in line for line in server.lines()):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(server.log.read_text())


def main(models: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO)
    settings, say = Settings(models=tuple(models)), partial(print, flush=True)
    if settings.cluster == "ray":
        from foveate.gateway.cli import serve_ray

        serve_ray.serve(settings, say, [partial(SleepRunner, name) for name in models])
    else:
        serve_local.serve(settings, say, lambda name, _: SleepRunner(name))


if __name__ == "__main__":
    main(sys.argv[1:])
