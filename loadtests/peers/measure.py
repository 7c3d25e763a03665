"""What is measured of each server: closed loops, and open loops under a promise; and of no server at all."""

import asyncio
import secrets
import socket
import time
import urllib.error
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from foveate.core.plan import Precision
from loadtests.closed_loop import LoopResult, drive, request_bytes
from loadtests.load.launch import launch
from loadtests.load.pictures import Catalogue, ImageSize
from loadtests.load.result import Run
from loadtests.peers.job import MOST_IN_BATCH, Job
from loadtests.peers.running import Server, ask, running
from loadtests.peers.work import Work

CONNECTIONS = (1, 8, 32)
TUNED_AT = 8
"""What is managed at so many connections is what a server is tuned with."""
UNHURRIED_MS = 60_000.0
"""The promise of closed loops, which are not about promises: nothing is refused."""
WARM_UP, WARM_S = 32, 3.0
"""Pictures one by one, and seconds of a closed loop at TUNED_AT, before anything is measured."""
PORTS = 5
GRACE_S = 60.0
"""For the last answers of a closed loop."""
PATIENCE_S = 3.0
"""An answer that comes later than this counts as none; TorchServe never answers those it drops."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for every server of a run."""

    weights: str
    precision: Precision
    pictures: Catalogue
    size: ImageSize
    seconds: float
    promises_ms: tuple[float, ...]
    loads: tuple[float, ...]
    """Offered rates, as multiples of the raw rate."""
    logs: Path


def raw(setup: Setup) -> Figures:
    """Decode and forward with nothing around them, alone and in batches, and how often that is right."""
    figures: Figures = {}
    work = Work(Job(setup.weights, setup.precision, 0, UNHURRIED_MS, 1e3))
    for batch in (1, MOST_IN_BATCH):
        done, right = 0, 0
        started = time.perf_counter()
        while (spent := time.perf_counter() - started) < setup.seconds:
            chosen = [(done + i) % len(setup.pictures) for i in range(batch)]
            answers = work.answer([setup.pictures.jpegs[i] for i in chosen])
            named = [answer["predictions"][0]["label"] for answer in answers]
            right += sum(name == setup.pictures.labels[i] for name, i in zip(named, chosen, strict=True))
            done += batch
        figures |= {f"raw_{batch}_per_s": done / spent, f"raw_{batch}_accuracy": right / done}
    figures["raw_per_s"] = max(figures["raw_1_per_s"], figures[f"raw_{MOST_IN_BATCH}_per_s"])
    return figures


def of_server(server: Server, python: Path, setup: Setup, rate: float, seed: int) -> Figures:
    """Every figure of one server. `rate`: of the raw loop, which loads are multiples of.

    It is started anew for each promise, tuned to that and to what it managed in the closed loop. Raises
    RuntimeError where it does not answer.
    """
    job = Job(setup.weights, setup.precision, 0, UNHURRIED_MS, rate)
    log, jpegs = setup.logs / f"{server.name}.log", setup.pictures.jpegs
    with running(server, python, anew(job), jpegs[0], log) as url:
        warmed(url, jpegs)
        figures = closed_loops(url, jpegs[0], setup.seconds)
    managed = figures[f"closed_{TUNED_AT}_per_s"]
    for promise_ms in setup.promises_ms:
        tuned = anew(replace(job, slo_ms=promise_ms, rate=managed))
        with running(server, python, tuned, jpegs[0], log) as url:
            warmed(url, jpegs)
            for load in setup.loads:
                found = open_loop(url, load * rate, promise_ms, setup, seed).figures()
                figures |= {
                    f"open_{promise_ms:g}ms_{load:g}x_{name}": value
                    for name, value in found.items()
                    if value is not None
                }
    return {f"{server.name}_{name}": value for name, value in figures.items()}


def anew(job: Job) -> Job:
    """On a port that is free, and the next four too: TorchServe takes five. Outgoing connections get
    theirs above these."""
    free = (port for port in range(21_000, 31_000, PORTS) if all(map(_free, range(port, port + PORTS))))
    return replace(job, port=next(free), token=secrets.token_hex(16))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def warmed(url: str, jpegs: Sequence[bytes]) -> None:
    """One after the other, for BentoML fits its latencies to the first requests it gets; then in batches."""
    for index in range(WARM_UP):
        with suppress(urllib.error.HTTPError, TimeoutError):  # the first may be later than the promise
            ask(url, jpegs[index % len(jpegs)])
    with suppress(TimeoutError):  # TorchServe never answers those it drops
        closed_loop(url, jpegs[0], TUNED_AT, WARM_S, grace_s=PATIENCE_S)


def closed_loops(url: str, jpeg: bytes, seconds: float) -> Figures:
    """Answers a second and median latency at each number of connections."""
    figures: Figures = {}
    for connections in CONNECTIONS:
        found = closed_loop(url, jpeg, connections, seconds)
        figures |= {
            f"closed_{connections}_per_s": found.per_second,
            f"closed_{connections}_p50_ms": found.p50_ms,
            f"closed_{connections}_failures": found.failures,
        }
    return figures


def closed_loop(
    url: str, jpeg: bytes, connections: int, seconds: float, grace_s: float = GRACE_S
) -> LoopResult:
    """Each connection sends again as soon as it was answered. Raises RuntimeError where nobody is, and
    TimeoutError where somebody still waits after so many seconds more."""
    found = asyncio.run(_closed(url, jpeg, connections, seconds, grace_s))
    if not found.latencies_s:
        raise RuntimeError(f"{url} answered nobody at {connections} connections")
    return found


async def _closed(url: str, jpeg: bytes, connections: int, seconds: float, grace_s: float) -> LoopResult:
    parts = urlsplit(url)
    async with asyncio.timeout(seconds + grace_s):  # a server that swallows a request would hold it for ever
        return await drive(parts.port or 80, request_bytes(parts.path, jpeg), connections, seconds)


def open_loop(
    url: str, rate: float, promise_ms: float, setup: Setup, seed: int,
    shape: str = "poisson", name: str = "", headers: str = "",
) -> Run:  # fmt: skip
    """Arrivals at a rate, whatever becomes of them, as the load generator saw it. Raises SetupError."""
    parts = urlsplit(url)
    options = {
        "url": f"{parts.scheme}://{parts.netloc}", "path": parts.path, "shape": shape, "rate": rate,
        "seconds": setup.seconds, "seed": seed, "slo-ms": promise_ms, "pictures": setup.size,
        "patience-s": PATIENCE_S, "name": name, "headers": headers,
    }  # fmt: skip
    (run,) = launch(*(f"--{name}={value}" for name, value in options.items()))
    return run
