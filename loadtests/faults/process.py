"""A server in a process of its own: its start, its memory, its processor time, and requests to it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loadtests.report import RUNS
from loadtests.warm import wait_warm

START_LIMIT_S = 300.0
SERVE = ("foveate.gateway.cli", "serve")
"""The module, and its first argument, of a server with the default models."""


@dataclass(slots=True)
class MeasuredServer:
    """A running server."""

    process: "subprocess.Popen[bytes]"
    port: int
    ready_s: float = 0.0
    """Seconds from the start to the first answer 200 of /readyz."""
    ready_cpu_s: float = 0.0
    """Processor seconds of the process until then."""

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Memory of the process in MB: VmRSS now, VmHWM at its peak."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    def forget_peak(self) -> None:
        """Set the peak to the memory now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """Processor seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_warm(self) -> None:
        """Wait until all rungs are warm."""
        wait_warm(self.url, START_LIMIT_S)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def exit_s(self, limit_s: float) -> float:
        """Seconds until the process ends; `limit_s` if it has to be killed then."""
        started = time.monotonic()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return limit_s
        return time.monotonic() - started


@contextmanager
def running(
    command: Sequence[str] = SERVE, environment: Mapping[str, str] | None = None, max_files: int = 0
) -> Iterator[MeasuredServer]:
    """Run `python -m COMMAND --port PORT` and yield it once it is ready.

    max_files: the limit on its descriptors; 0 keeps that of this process. Raises RuntimeError if it does not
    become ready. The process is ended with the context.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    arguments = [sys.executable, "-m", *command, "--port", str(port)]
    if max_files:
        arguments = ["prlimit", f"--nofile={max_files}:{max_files}", *arguments]
    RUNS.mkdir(exist_ok=True)
    started = time.monotonic()
    with (RUNS / "faults.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            arguments, env={**os.environ, **(environment or {})}, stdout=log, stderr=log
        )
    server = MeasuredServer(process, port)
    try:
        while status(server, "/readyz") != 200:
            if process.poll() is not None or time.monotonic() - started > START_LIMIT_S:
                raise RuntimeError(f"the server did not become ready; see {RUNS / 'faults.log'}")
            time.sleep(0.1)
        server.ready_s, server.ready_cpu_s = time.monotonic() - started, server.cpu_s()
        yield server
    finally:
        if process.poll() is None:
            server.terminate()
            server.exit_s(60)


def status(server: MeasuredServer, path: str, timeout_s: float = 5) -> int:
    """The status of a GET; 0 without an answer."""
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()
    return 0


def post(server: MeasuredServer, path: str, body: bytes, kind: str, timeout_s: float = 60) -> int:
    """The status of a POST, once its whole answer has been read; 0 without an answer."""
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
        try:
            connection.request("POST", path, body, {"content-type": kind, "cache-control": "no-cache"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()
    return 0
