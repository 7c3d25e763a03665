"""Start a server in processes of its own, wait until it answers, and leave none of them behind."""

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

ROOT = Path(__file__).parents[2]
QUIET = {
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Nobody calls home."""


@dataclass(frozen=True, slots=True)
class PeerServer:
    """One way to serve: how it is started, where it takes pictures, what it installs."""

    name: str
    command: tuple[str, ...]
    """After the interpreter; {port} stands for the port."""
    packages: tuple[str, ...] = ()
    """Nothing: the project's own environment has all it needs."""
    path: str = "/classify"


def _module(name: str) -> tuple[str, ...]:
    return ("-m", f"loadtests.peers.servers.{name}_server")


BENTO = ("-m", "bentoml", "serve", "loadtests.peers.servers.bentoml_server:Classifier", "--host", "127.0.0.1")
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
    """The URL that takes pictures, once it has answered one. Raises RuntimeError where it never does."""
    url = f"http://127.0.0.1:{config.port}{server.path}"
    command = [str(python), *(part.replace("{port}", str(config.port)) for part in server.command)]
    environment = os.environ | QUIET | UNCACHED | config.environment() | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            command, env=environment, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait(url, jpeg, process, log)
        yield url
    finally:
        _stop(process, config.token)


def post_image(url: str, jpeg: bytes, timeout_s: float = 10) -> bytes:
    """One picture in, the body of the answer out."""
    request = urllib.request.Request(url, jpeg, {"content-type": "image/jpeg"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
        body: bytes = answer.read()
    return body


def _wait(url: str, jpeg: bytes, process: subprocess.Popen[bytes], log: Path, limit_s: float = 90) -> None:
    until, problem = time.monotonic() + limit_s, "it ended"
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
    """Ask it to end, then end what is left: some start processes in groups of their own."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for _ in range(20):
        left = processes(token)
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):  # it may have ended by now
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def processes(token: str) -> list[int]:
    """Every process whose environment carries this token: those that a server started, however deep."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            carries = token.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is not ours to read
        if carries and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found
