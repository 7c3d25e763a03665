"""Measures cached answers, shared image features, and requests while Redis is killed and restarted."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout
from loadtests.tasks.clicking import enlarged
from loadtests.tasks.server import HttpResponse, post, serving

HITS = 300
"""Requests that are answered from the cache."""
IMAGES = 30
"""New images of each pair of tasks, and as many for which another task has run before."""
RATE, PHASE_S = 20.0, 6.0
"""Requests per second, and seconds of each phase: Redis runs, is killed, runs again."""
DEADLINE_MS = "2000"
CLASSIFY, SEGMENT, CLICK = "/classify?top_k=1", "/segment", "/segment?points=240%2C240"
TASK_PAIRS = {
    "classify, after segment": (SEGMENT, CLASSIFY),
    "click, after segment": (SEGMENT, CLICK),
    "segment, after a click": (CLICK, SEGMENT),
}
"""The first task computes the features of an image, the second uses them."""


@dataclass(frozen=True, slots=True)
class HitTimes:
    """Medians in milliseconds."""

    computed_ms: float
    """Time in the server for a new image."""
    hit_ms: float
    """Time in the server for an answer from the cache."""
    hit_client_ms: float
    """Time at the client for an answer from the cache."""


@dataclass(frozen=True, slots=True)
class OutageResult:
    """A run in which Redis is killed and restarted. Tuples have one value for each phase."""

    requests: int
    errors: int
    """Requests without a successful answer."""
    hits: tuple[int, ...]
    p99_ms: tuple[float, ...]
    """At the client."""


@dataclass(frozen=True, slots=True)
class FeatureTimes:
    """A task on an image; medians of the time in the server, in milliseconds."""

    task: str
    first_ms: float
    """On a new image."""
    second_ms: float
    """On an image whose features another task has computed."""

    @property
    def speedup(self) -> float:
        """How many times faster the task is with cached features."""
        return self.first_ms / self.second_ms


class RedisProcess:
    """A redis-server that stores nothing on disk. Raises SetupError if it is not installed."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SetupError("redis-server is not installed: apt-get install redis-server")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [program, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For FOVEATE_CACHE."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process and wait until it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)  # noqa: S603
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"redis-server does not listen on port {self.port} after 10 s")

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis() -> Iterator[RedisProcess]:
    """A running Redis."""
    process = RedisProcess()
    process.start()
    try:
        yield process
    finally:
        process.stop()


def cache_environment(cache: str) -> Mapping[str, str]:
    """The environment of a server with this cache: memory, or the URL of a Redis."""
    return {"FOVEATE_CACHE": cache, "FOVEATE_CACHE_BYTES": str(2**26)}


def measure_hits(cache: str) -> HitTimes:
    """Classify new images, and then the same images again."""
    jpegs = [enlarged(jpeg) for jpeg in heldout().jpegs[:40]]
    with serving("--model", "vit-t", environment=cache_environment(cache)) as url:
        computed = [_classify(url, jpeg) for jpeg in jpegs]
        time.sleep(0.2)
        hits = [_classify(url, jpegs[number % len(jpegs)]) for number in range(HITS)]
    misses = sum(response.headers.get("x-cache") != "hit" for response in hits)
    if misses:
        raise RuntimeError(f"{misses} of {HITS} repeated requests were not answered from the cache")
    return HitTimes(
        statistics.median(response.json()["timings_ms"]["total"] for response in computed),
        statistics.median(response.json()["timings_ms"]["total"] for response in hits),
        1e3 * statistics.median(response.seconds for response in hits),
    )


def measure_features(cache: str) -> tuple[FeatureTimes, ...]:
    """Each task on new images, and on images whose features another task has computed."""
    jpegs = [enlarged(jpeg, (480, 480)) for jpeg in heldout().jpegs[: 2 * len(TASK_PAIRS) * IMAGES]]
    times = []
    with serving("--model", "vit-t", "--model", "vit-t-seg", environment=cache_environment(cache)) as url:
        for path in (CLASSIFY, SEGMENT, CLICK):  # warm up: the first requests prepare kernels
            for jpeg in heldout().jpegs[-4:]:
                _server_ms(url, path, enlarged(jpeg, (480, 480)))
        for number, (task, (first_path, second_path)) in enumerate(TASK_PAIRS.items()):
            own = jpegs[2 * number * IMAGES : 2 * (number + 1) * IMAGES]
            pairs = []
            for new, prepared in zip(own[:IMAGES], own[IMAGES:], strict=True):
                first_ms = _server_ms(url, second_path, new)
                _server_ms(url, first_path, prepared)
                time.sleep(0.02)  # the server writes to Redis after it has answered
                pairs.append((first_ms, _server_ms(url, second_path, prepared)))
            medians = (statistics.median(column) for column in zip(*pairs, strict=True))
            times.append(FeatureTimes(task, *medians))
    return tuple(times)


def measure_outage() -> OutageResult:
    """Requests at a fixed rate while Redis runs, is killed, and runs again."""
    jpegs = [enlarged(jpeg) for jpeg in heldout().jpegs[:20]]
    errors, total = 0, 0
    phases: list[list[tuple[bool, float]]] = [[], [], []]
    with redis() as server, serving("--model", "vit-t", environment=cache_environment(server.url)) as url:
        for phase, begin in zip(phases, (None, server.stop, server.start), strict=True):
            if begin is not None:
                begin()
            began = time.perf_counter()
            for number in range(int(RATE * PHASE_S)):
                time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
                total += 1
                try:
                    response = _classify(url, jpegs[number % len(jpegs)])
                except urllib.error.HTTPError:
                    errors += 1
                    continue
                phase.append((response.headers.get("x-cache") == "hit", 1e3 * response.seconds))
    hits = tuple(sum(hit for hit, _ in phase) for phase in phases)
    return OutageResult(total, errors, hits, tuple(p99([ms for _, ms in phase]) for phase in phases))


def p99(values: list[float]) -> float:
    """The 99th percentile, as the nearest of the values below it."""
    return sorted(values)[int(0.99 * (len(values) - 1))]


def _classify(url: str, jpeg: bytes) -> HttpResponse:
    return post(f"{url}/classify?top_k=1", jpeg, "image/jpeg", x_slo_ms=DEADLINE_MS)


def _server_ms(url: str, path: str, jpeg: bytes) -> float:
    """The total time in the server of one request."""
    total_ms: float = post(f"{url}{path}", jpeg, "image/jpeg").json()["timings_ms"]["total"]
    return total_ms


def figures(
    memory: HitTimes,
    shared: HitTimes,
    features: tuple[FeatureTimes, ...],
    shared_features: tuple[FeatureTimes, ...],
    outage: OutageResult,
) -> dict[str, Any]:
    """The figures of the bench; `shared` ones are with Redis. Numbers become keys of scale.json."""
    return {
        "response_hit_p50_ms": round(memory.hit_ms, 3),
        "response_hit_p50_ms_redis": round(shared.hit_ms, 3),
        "response_hit_client_p50_ms": round(memory.hit_client_ms, 3),
        "response_computed_p50_ms": round(memory.computed_ms, 3),
        "feature_hit_speedup": round(min(times.speedup for times in features), 2),
        "feature_hit_speedup_redis": round(min(times.speedup for times in shared_features), 2),
        "features": [
            [times.task, times.first_ms, times.second_ms, with_redis.second_ms]
            for times, with_redis in zip(features, shared_features, strict=True)
        ],
        "redis_down_requests": outage.requests,
        "redis_down_errors": outage.errors,
        "redis_hits": outage.hits,
        "redis_p99_ms": [round(ms, 1) for ms in outage.p99_ms],
    }


def main() -> None:
    """`python -m loadtests.scale.caches` prints the figures as JSON, from a process of its own."""
    with redis() as server:
        shared, shared_features = measure_hits(server.url), measure_features(server.url)
    memory, outage = measure_hits("memory"), measure_outage()
    features = measure_features("memory")
    sys.stdout.write(json.dumps(figures(memory, shared, features, shared_features, outage)) + os.linesep)


if __name__ == "__main__":
    main()
