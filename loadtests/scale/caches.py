"""What a cached answer takes, and what a Redis that dies costs those who ask meanwhile."""

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

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout
from loadtests.tasks.clicking import enlarged
from loadtests.tasks.server import HttpResponse, post, serving

HITS = 300
PICTURES = 30
"""Of each task on pictures that are new, and as many that another task has seen."""
RATE, PHASE_S = 20.0, 6.0
"""Requests a second, and seconds for each of: Redis is there, is gone, is there again."""
DEADLINE_MS = "2000"


@dataclass(frozen=True, slots=True)
class Hits:
    """Medians in milliseconds."""

    computed_ms: float
    """In the server, of a picture that is new."""
    hit_ms: float
    """In the server, of one that was answered before."""
    hit_client_ms: float


@dataclass(frozen=True, slots=True)
class Outage:
    """A run in which Redis is killed and started again."""

    requests: int
    errors: int
    """Answers that were no 200."""
    hits: tuple[int, int, int]
    """While it was there, gone, there again."""
    p99_ms: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Seconds:
    """A task of a picture, in the server, medians in milliseconds."""

    task: str
    first_ms: float
    """Of a picture that is new."""
    second_ms: float
    """Of one that another task has been asked of before."""

    @property
    def speedup(self) -> float:
        return self.first_ms / self.second_ms


class Redis:
    """redis-server in a process of its own, which keeps nothing on disk."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SetupError("redis-server is not installed: apt-get install redis-server")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [program, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)  # noqa: S603
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError("redis-server never listened")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis() -> Iterator[Redis]:
    found = Redis()
    found.start()
    try:
        yield found
    finally:
        found.stop()


def cached(cache: str) -> Mapping[str, str]:
    """The environment of a server with this cache."""
    return {"FOVEATE_CACHE": cache, "FOVEATE_CACHE_BYTES": str(2**26)}


def hits(cache: str) -> Hits:
    """One picture again and again, after some that are new."""
    jpegs = [enlarged(jpeg) for jpeg in heldout().jpegs[:40]]
    with serving("--model", "vit-t", environment=cached(cache)) as url:
        new = [_asked(url, jpeg) for jpeg in jpegs]
        time.sleep(0.2)
        again = [_asked(url, jpegs[number % len(jpegs)]) for number in range(HITS)]
    wrong = [one for one in again if one.headers.get("x-cache") != "hit"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {HITS} answers were computed again")
    return Hits(
        statistics.median(one.json()["timings_ms"]["total"] for one in new),
        statistics.median(one.json()["timings_ms"]["total"] for one in again),
        1e3 * statistics.median(one.seconds for one in again),
    )


NAMES, MASK, CLICK = "/classify?top_k=1", "/segment", "/segment?points=240%2C240"


def seconds_of(cache: str) -> tuple[Seconds, ...]:
    """Each task on pictures that are new, and on such as another task has seen."""
    jpegs = [enlarged(jpeg, (480, 480)) for jpeg in heldout().jpegs[: 6 * PICTURES]]
    found = []
    with serving("--model", "vit-t", "--model", "vit-t-seg", environment=cached(cache)) as url:

        def ms(path: str, jpeg: bytes) -> float:
            spent: float = post(f"{url}{path}", jpeg, "image/jpeg").json()["timings_ms"]["total"]
            return spent

        for path in (NAMES, MASK, CLICK):  # kernels are made with the first
            for jpeg in heldout().jpegs[-4:]:
                ms(path, enlarged(jpeg, (480, 480)))
        tasks = {"classify, after segment": (MASK, NAMES), "click, after segment": (MASK, CLICK)}
        tasks["segment, after a click"] = (CLICK, MASK)
        for number, (task, (before, after)) in enumerate(tasks.items()):
            new = jpegs[2 * number * PICTURES : (2 * number + 1) * PICTURES]
            seen = jpegs[(2 * number + 1) * PICTURES : (2 * number + 2) * PICTURES]
            pairs = []
            for one, other in zip(new, seen, strict=True):
                first = ms(after, one)
                ms(before, other)
                time.sleep(0.02)  # Redis is told behind the answer's back
                pairs.append((first, ms(after, other)))
            found.append(Seconds(task, *(statistics.median(column) for column in zip(*pairs, strict=True))))
    return tuple(found)


def outage() -> Outage:
    """Requests at a steady rate while Redis is there, is killed, and is back."""
    jpegs = [enlarged(jpeg) for jpeg in heldout().jpegs[:20]]
    errors, total = 0, 0
    found: list[list[tuple[bool, float]]] = [[], [], []]
    with redis() as server, serving("--model", "vit-t", environment=cached(server.url)) as url:
        for phase in range(3):
            if phase:
                (server.stop, server.start)[phase - 1]()
            began = time.perf_counter()
            for number in range(int(RATE * PHASE_S)):
                time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
                total += 1
                try:
                    answer = _asked(url, jpegs[number % len(jpegs)])
                except urllib.error.HTTPError:
                    errors += 1
                    continue
                hit = answer.headers.get("x-cache") == "hit"
                found[phase].append((hit, 1e3 * answer.seconds))
    counted = [sum(hit for hit, _ in phase) for phase in found]
    p99 = [sorted(ms for _, ms in phase)[int(0.99 * (len(phase) - 1))] for phase in found]
    return Outage(total, errors, (counted[0], counted[1], counted[2]), (p99[0], p99[1], p99[2]))


def _asked(url: str, jpeg: bytes) -> HttpResponse:
    return post(f"{url}/classify?top_k=1", jpeg, "image/jpeg", x_slo_ms=DEADLINE_MS)


def main() -> None:
    """`python -m loadtests.scale.caches` prints JSON; in a process of its own."""
    with redis() as server:
        shared = hits(server.url)
        seen_shared = seconds_of(server.url)
    own, gone, seen = hits("memory"), outage(), seconds_of("memory")
    told = {
        "response_hit_p50_ms": round(own.hit_ms, 3),
        "response_hit_p50_ms_redis": round(shared.hit_ms, 3),
        "response_hit_client_p50_ms": round(own.hit_client_ms, 3),
        "response_computed_p50_ms": round(own.computed_ms, 3),
        "feature_hit_speedup": round(min(one.speedup for one in seen), 2),
        "feature_hit_speedup_redis": round(min(one.speedup for one in seen_shared), 2),
        "features": [
            [one.task, one.first_ms, one.second_ms, other.second_ms]
            for one, other in zip(seen, seen_shared, strict=True)
        ],
        "redis_down_requests": gone.requests,
        "redis_down_errors": gone.errors,
        "redis_hits": gone.hits,
        "redis_p99_ms": [round(ms, 1) for ms in gone.p99_ms],
    }
    sys.stdout.write(json.dumps(told) + os.linesep)


if __name__ == "__main__":
    main()
