"""Measure the raw loop, and each server in closed loops and in open loops with a deadline."""

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
from loadtests.load.images import Catalogue, SceneSize
from loadtests.load.launch import launch
from loadtests.load.result import LoadTestRun
from loadtests.peers.config import MAX_BATCH_SIZE, PeerConfig
from loadtests.peers.inference import PeerInference
from loadtests.peers.running import PeerServer, post_image, running
from loadtests.report import Figures

CONNECTIONS = (1, 8, 32)
TUNED_AT = 8
"""A server is tuned to the rate that it reaches in the closed loop at this number of connections."""
NO_DEADLINE_MS = 60_000.0
"""The deadline of closed loops, so long that no request is refused."""
WARM_UP, WARM_UP_S = 32, 3.0
"""Images in sequence, and seconds of a closed loop at TUNED_AT, before a measurement."""
PORTS = 5
GRACE_S = 60.0
"""Seconds for the last answers of a closed loop."""
ANSWER_TIMEOUT_S = 3.0
"""A request without an answer after this time counts as unanswered: TorchServe drops requests silently."""


@dataclass(frozen=True, slots=True)
class BenchSetup:
    """The settings that all servers of a run share."""

    weights: str
    precision: Precision
    images: Catalogue
    image_size: SceneSize
    seconds: float
    deadlines_ms: tuple[float, ...]
    loads: tuple[float, ...]
    """Offered rates, as multiples of the raw rate."""
    logs: Path


def raw(setup: BenchSetup) -> Figures:
    """Decode and forward in a loop, alone and in batches: rate and accuracy."""
    figures: Figures = {}
    inference = PeerInference(PeerConfig(setup.weights, setup.precision, 0, NO_DEADLINE_MS, 1e3))
    for batch in (1, MAX_BATCH_SIZE):
        done, correct = 0, 0
        started = time.perf_counter()
        while (elapsed_s := time.perf_counter() - started) < setup.seconds:
            indices = [(done + i) % len(setup.images) for i in range(batch)]
            answers = inference.answer([setup.images.jpegs[i] for i in indices])
            labels = [answer["predictions"][0]["label"] for answer in answers]
            correct += sum(label == setup.images.labels[i] for label, i in zip(labels, indices, strict=True))
            done += batch
        figures |= {f"raw_{batch}_per_s": done / elapsed_s, f"raw_{batch}_accuracy": correct / done}
    figures["raw_per_s"] = max(figures["raw_1_per_s"], figures[f"raw_{MAX_BATCH_SIZE}_per_s"])
    return figures


def measure_server(server: PeerServer, python: Path, setup: BenchSetup, rate: float, seed: int) -> Figures:
    """All figures of one server; `rate` is that of the raw loop.

    The server is started again for each deadline, tuned to it and to its own rate in the closed loop. Raises
    RuntimeError if the server does not answer.
    """
    config = PeerConfig(setup.weights, setup.precision, 0, NO_DEADLINE_MS, rate)
    log, jpegs = setup.logs / f"{server.name}.log", setup.images.jpegs
    with running(server, python, on_free_port(config), jpegs[0], log) as url:
        warm_up(url, jpegs)
        figures = closed_loops(url, jpegs[0], setup.seconds)
    own_rate = figures[f"closed_{TUNED_AT}_per_s"]
    for deadline_ms in setup.deadlines_ms:
        tuned = on_free_port(replace(config, slo_ms=deadline_ms, rate=own_rate))
        with running(server, python, tuned, jpegs[0], log) as url:
            warm_up(url, jpegs)
            for load in setup.loads:
                run = open_loop(url, load * rate, deadline_ms, setup, seed)
                figures |= {
                    f"open_{deadline_ms:g}ms_{load:g}x_{name}": value
                    for name, value in run.figures().items()
                    if value is not None
                }
    return {f"{server.name}_{name}": value for name, value in figures.items()}


def on_free_port(config: PeerConfig) -> PeerConfig:
    """The configuration with a new token and a port that is free, as are the next four, because TorchServe
    uses five. The range is below that of outgoing connections."""
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
    """Send images in sequence, because BentoML fits its latencies to its first requests; then in batches."""
    for index in range(WARM_UP):
        with suppress(urllib.error.HTTPError, TimeoutError):  # the first may miss the deadline
            post_image(url, jpegs[index % len(jpegs)])
    with suppress(TimeoutError):  # TorchServe never answers the requests that it drops
        closed_loop(url, jpegs[0], TUNED_AT, WARM_UP_S, grace_s=ANSWER_TIMEOUT_S)


def closed_loops(url: str, jpeg: bytes, seconds: float) -> Figures:
    """Answers per second and median latency at each number of connections."""
    figures: Figures = {}
    for connections in CONNECTIONS:
        result = closed_loop(url, jpeg, connections, seconds)
        figures |= {
            f"closed_{connections}_per_s": result.per_second,
            f"closed_{connections}_p50_ms": result.p50_ms,
            f"closed_{connections}_failures": result.failures,
        }
    return figures


def closed_loop(
    url: str, jpeg: bytes, connections: int, seconds: float, grace_s: float = GRACE_S
) -> ClosedLoopResult:
    """Each connection sends its next request after the answer.

    Raises RuntimeError if no request is answered, and TimeoutError if an answer is missing `grace_s` after
    the end.
    """
    result = asyncio.run(_closed_loop(url, jpeg, connections, seconds, grace_s))
    if not result.latencies_s:
        raise RuntimeError(f"{url} answered no request at {connections} connections")
    return result


async def _closed_loop(
    url: str, jpeg: bytes, connections: int, seconds: float, grace_s: float
) -> ClosedLoopResult:
    parts = urlsplit(url)
    async with asyncio.timeout(seconds + grace_s):  # a server may never answer a request
        return await drive(parts.port or 80, request_bytes(parts.path, jpeg), connections, seconds)


def open_loop(
    url: str, rate: float, deadline_ms: float, setup: BenchSetup, seed: int,
    shape: str = "poisson", name: str = "", headers: str = "",
) -> LoadTestRun:  # fmt: skip
    """One run of `python -m loadtests.load` at this rate. Raises SetupError."""
    parts = urlsplit(url)
    options = {
        "url": f"{parts.scheme}://{parts.netloc}", "path": parts.path, "shape": shape, "rate": rate,
        "seconds": setup.seconds, "seed": seed, "slo-ms": deadline_ms, "pictures": setup.image_size,
        "patience-s": ANSWER_TIMEOUT_S, "name": name, "headers": headers,
    }  # fmt: skip
    (run,) = launch(*(f"--{name}={value}" for name, value in options.items()))
    return run
