"""Start a server in separate processes, wait until it answers, and stop all of its processes."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers.config import PeerConfig
from loadtests.report import UNCACHED
from loadtests.warm import wait_warm

ROOT = Path(__file__).parents[2]
QUIET = {
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Turns usage reports off."""


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A serving system: its command, its packages and its path."""

    name: str
    command: tuple[str, ...]
    """Arguments of the interpreter; {port} stands for the port."""
    packages: tuple[str, ...] = ()
    """Requirements to install; empty for the environment of the project."""
    path: str = "/classify"


def _module(name: str) -> tuple[str, ...]:
    return ("-m", f"loadtests.peers.servers.{name}_server")


BENTO = (
    "-m",
    "bentoml",
    "serve",
    "loadtests.peers.servers.bentoml_server:BentoClassifier",
    "--host",
    "127.0.0.1",
)
SERVERS = {
    server.name: server
    for server in (
        PeerServer("foveate", _module("foveate")),
        PeerServer("fastapi", _module("fastapi")),
        PeerServer("litserve", _module("litserve"), ("litserve==0.2.19",)),
        PeerServer("ray", _module("ray"), ("ray[serve]==2.60.0",)),
        PeerServer("bentoml", (*BENTO, "--port", "{port}"), ("bentoml==1.4.39",)),
        PeerServer("mosec", _module("mosec"), ("mosec==0.9.8",)),
        PeerServer(
            "torchserve", _module("torchserve"),
            ("torchserve==0.12.0", "torch-model-archiver==0.12.0"), "/predictions/vit",
        ),
    )
}  # fmt: skip


@contextmanager
def running(server: PeerServer, python: Path, config: PeerConfig, jpeg: bytes, log: Path) -> Iterator[str]:
    """Run a server and yield its URL after it has answered one image.

    Raises RuntimeError if it never answers. All its processes are stopped at the end.
    """
    url = f"http://127.0.0.1:{config.port}{server.path}"
    command = [str(python), *(part.replace("{port}", str(config.port)) for part in server.command)]
    environment = os.environ | QUIET | UNCACHED | config.environment() | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            command, env=environment, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait(url, jpeg, process, log)
        with suppress(urllib.error.URLError, ConnectionError):  # some servers listen on this path elsewhere
            wait_warm(url)
        yield url
    finally:
        _stop(process, config.token)


def post_image(url: str, jpeg: bytes, timeout_s: float = 10) -> bytes:
    """POST an image and return the body of the answer. Raises URLError and TimeoutError."""
    request = urllib.request.Request(url, jpeg, {"content-type": "image/jpeg"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
        body: bytes = response.read()
    return body


def _wait(url: str, jpeg: bytes, process: subprocess.Popen[bytes], log: Path, limit_s: float = 90) -> None:
    until, problem = time.monotonic() + limit_s, "its process ended"
    while time.monotonic() < until and process.poll() is None:
        try:
            post_image(url, jpeg)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            problem = f"{error}"
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"{url} did not answer ({problem}); see {log}")


def _stop(process: subprocess.Popen[bytes], token: str) -> None:
    """Terminate the server, then kill its remaining processes: some servers start new process groups."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for _ in range(20):
        remaining = processes(token)
        if not remaining:
            return
        for pid in remaining:
            with suppress(ProcessLookupError):  # the process may have ended
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def processes(token: str) -> list[int]:
    """All processes whose environment has this token: the server and its descendants."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            has_token = token.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue  # the process has ended or belongs to another user
        if has_token and int(folder.name) != os.getpid():
            pids.append(int(folder.name))
    return pids
