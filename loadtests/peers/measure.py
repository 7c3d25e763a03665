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
from loadtests.closed_loop import ClosedLoopResult, drive, request_bytes
from loadtests.load.images import Catalogue, Size
from loadtests.load.launch import launch
from loadtests.load.result import LoadTestRun
from loadtests.peers.config import MAX_BATCH_SIZE, PeerConfig
from loadtests.peers.inference import PeerInference
from loadtests.peers.running import PeerServer, post_image, running

CONNECTIONS = (1, 8, 32)
TUNED_AT = 8
"""What is managed at so many connections is what a server is tuned with."""
NO_DEADLINE_MS = 60_000.0
"""The promise of closed loops, which are not about promises: nothing is refused."""
WARM_UP, WARM_S = 32, 3.0
"""Pictures one by one, and seconds of a closed loop at TUNED_AT, before anything is measured."""
PORTS = 5
GRACE_S = 60.0
"""For the last answers of a closed loop."""
ANSWER_TIMEOUT_S = 3.0
"""An answer that comes later than this counts as none; TorchServe never answers those it drops."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class BenchSetup:
    """What is the same for every server of a run."""

    weights: str
    precision: Precision
    pictures: Catalogue
    size: Size
    seconds: float
    deadlines_ms: tuple[float, ...]
    loads: tuple[float, ...]
    """Offered rates, as multiples of the raw rate."""
    logs: Path


def raw(setup: BenchSetup) -> Figures:
    """Decode and forward with nothing around them, alone and in batches, and how often that is right."""
    figures: Figures = {}
    work = PeerInference(PeerConfig(setup.weights, setup.precision, 0, NO_DEADLINE_MS, 1e3))
    for batch in (1, MAX_BATCH_SIZE):
        done, right = 0, 0
        started = time.perf_counter()
        while (spent := time.perf_counter() - started) < setup.seconds:
            chosen = [(done + i) % len(setup.pictures) for i in range(batch)]
            answers = work.answer([setup.pictures.jpegs[i] for i in chosen])
            named = [answer["predictions"][0]["label"] for answer in answers]
            right += sum(name == setup.pictures.labels[i] for name, i in zip(named, chosen, strict=True))
            done += batch
        figures |= {f"raw_{batch}_per_s": done / spent, f"raw_{batch}_accuracy": right / done}
    figures["raw_per_s"] = max(figures["raw_1_per_s"], figures[f"raw_{MAX_BATCH_SIZE}_per_s"])
    return figures


def of_server(server: PeerServer, python: Path, setup: BenchSetup, rate: float, seed: int) -> Figures:
    """Every figure of one server. `rate`: of the raw loop, which loads are multiples of.

    It is started anew for each promise, tuned to that and to what it managed in the closed loop. Raises
    RuntimeError where it does not answer.
    """
    config = PeerConfig(setup.weights, setup.precision, 0, NO_DEADLINE_MS, rate)
    log, jpegs = setup.logs / f"{server.name}.log", setup.pictures.jpegs
    with running(server, python, on_free_port(config), jpegs[0], log) as url:
        warm_up(url, jpegs)
        figures = closed_loops(url, jpegs[0], setup.seconds)
    managed = figures[f"closed_{TUNED_AT}_per_s"]
    for deadline_ms in setup.deadlines_ms:
        tuned = on_free_port(replace(config, slo_ms=deadline_ms, rate=managed))
        with running(server, python, tuned, jpegs[0], log) as url:
            warm_up(url, jpegs)
            for load in setup.loads:
                found = open_loop(url, load * rate, deadline_ms, setup, seed).figures()
                figures |= {
                    f"open_{deadline_ms:g}ms_{load:g}x_{name}": value
                    for name, value in found.items()
                    if value is not None
                }
    return {f"{server.name}_{name}": value for name, value in figures.items()}


def on_free_port(config: PeerConfig) -> PeerConfig:
    """On a port that is free, and the next four too: TorchServe takes five. Outgoing connections get
    theirs above these."""
    free = (port for port in range(21_000, 31_000, PORTS) if all(map(_free, range(port, port + PORTS))))
    return replace(config, port=next(free), token=secrets.token_hex(16))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def warm_up(url: str, jpegs: Sequence[bytes]) -> None:
    """One after the other, for BentoML fits its latencies to the first requests it gets; then in batches."""
    for index in range(WARM_UP):
        with suppress(urllib.error.HTTPError, TimeoutError):  # the first may be later than the promise
            post_image(url, jpegs[index % len(jpegs)])
    with suppress(TimeoutError):  # TorchServe never answers those it drops
        closed_loop(url, jpegs[0], TUNED_AT, WARM_S, grace_s=ANSWER_TIMEOUT_S)


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
) -> ClosedLoopResult:
    """Each connection sends again as soon as it was answered. Raises RuntimeError where nobody is, and
    TimeoutError where somebody still waits after so many seconds more."""
    found = asyncio.run(_closed(url, jpeg, connections, seconds, grace_s))
    if not found.latencies_s:
        raise RuntimeError(f"{url} answered nobody at {connections} connections")
    return found


async def _closed(
    url: str, jpeg: bytes, connections: int, seconds: float, grace_s: float
) -> ClosedLoopResult:
    parts = urlsplit(url)
    async with asyncio.timeout(seconds + grace_s):  # a server that swallows a request would hold it for ever
        return await drive(parts.port or 80, request_bytes(parts.path, jpeg), connections, seconds)


def open_loop(
    url: str, rate: float, deadline_ms: float, setup: BenchSetup, seed: int,
    shape: str = "poisson", name: str = "", headers: str = "",
) -> LoadTestRun:  # fmt: skip
    """Arrivals at a rate, whatever becomes of them, as the load generator saw it. Raises SetupError."""
    parts = urlsplit(url)
    options = {
        "url": f"{parts.scheme}://{parts.netloc}", "path": parts.path, "shape": shape, "rate": rate,
        "seconds": setup.seconds, "seed": seed, "slo-ms": deadline_ms, "pictures": setup.size,
        "patience-s": ANSWER_TIMEOUT_S, "name": name, "headers": headers,
    }  # fmt: skip
    (run,) = launch(*(f"--{name}={value}" for name, value in options.items()))
    return run
