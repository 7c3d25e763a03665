"""Try every timm architecture in worker processes, with a limit on the time of each."""

import json
import logging
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import IO, cast

from foveate.models.weights.torchvision_operators import declare_missing_operators
from loadtests.reach.attempt import MEMORY_REASON, Attempt

log = logging.getLogger("reach")
LIMIT_S = 300.0
"""Seconds that one model may take to load and answer."""
MEMORY_GIB = 20
"""Memory for all worker processes together."""


def architectures() -> list[tuple[str, str]]:
    """All architectures of timm with the module that defines each."""
    declare_missing_operators()
    timm = import_module("timm")
    entries = ((name, timm.models.model_entrypoint(name)) for name in timm.list_models())
    return [(name, entry.__module__.rpartition(".")[2]) for name, entry in entries]


class Tried:
    """The attempts so far, one JSON line each in a file. An interrupted run goes on from there."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.attempts = {row["name"]: Attempt(**row) for row in map(json.loads, lines)}

    def add(self, attempt: Attempt) -> None:
        with self._lock:
            self.attempts[attempt.name] = attempt
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(attempt)) + "\n")
            log.info("%d: %s is %s %s", len(self.attempts), attempt.name, attempt.kind, attempt.reason)


class AttemptProcess:
    """A process that tries names one by one, and is started again after one that it does not survive."""

    def __init__(self, memory_gib: int) -> None:
        self._memory_gib = memory_gib
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "loadtests.reach.attempt", str(self._memory_gib)]
        return subprocess.Popen(  # noqa: S603 -- our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def attempt(self, name: str, module: str) -> Attempt:
        """Try one name."""
        stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        stdin.write(f"{name} {module}\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], LIMIT_S)
        line = stdout.readline() if ready else ""
        if line:
            return Attempt(**json.loads(line))
        reason = f"{MEMORY_REASON} {self._memory_gib} GiB of this run, or fails in native code"
        if not ready:
            reason = f"it takes more than {LIMIT_S:g} s to load and answer on this machine"
        self.end()
        self._process = self._start()
        return Attempt(name, module, "refused", reason=reason)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def try_all(names: Sequence[tuple[str, str]], jobs: int, tried: Tried) -> None:
    """Try all names that are not tried yet, `jobs` at a time; then one by one those that lacked memory."""
    _try(names, jobs, tried, lambda attempt: attempt is None)
    if jobs > 1:
        _try(names, 1, tried, lambda attempt: attempt is None or attempt.reason.startswith(MEMORY_REASON))


def _try(
    names: Sequence[tuple[str, str]], jobs: int, tried: Tried, is_left: Callable[[Attempt | None], bool]
) -> None:
    left = iter([pair for pair in names if is_left(tried.attempts.get(pair[0]))])
    lock = Lock()

    def run(_: int) -> None:
        process = AttemptProcess(MEMORY_GIB // jobs)
        try:
            while True:
                with lock:
                    pair = next(left, None)
                if pair is None:
                    return
                tried.add(process.attempt(*pair))
        finally:
            process.end()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, range(jobs)))
