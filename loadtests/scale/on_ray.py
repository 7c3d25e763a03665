"""Measures the overhead of Ray Serve against one process, and the throughput of several replicas."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.overhead import load_server, sample_jpeg, served

CONNECTIONS = 32
REPLICAS = (1, 2, 4)
SLEEP_MS = 20
"""Milliseconds that the sleeping model takes for one image at a time."""
ROUNDS, SECONDS = 3, 5.0


@dataclass(frozen=True, slots=True)
class RayOverhead:
    """A no-op model in one process and on Ray; medians over the rounds."""

    local_rps: float
    ray_rps: float
    local_p50_ms: float
    """Latency of one request at a time."""
    ray_p50_ms: float

    @property
    def added_ms(self) -> float:
        """Milliseconds that Ray adds to one request at a time."""
        return self.ray_p50_ms - self.local_p50_ms


def measure_overhead() -> RayOverhead:
    """Run both servers at the same time and measure them in turns."""
    jpeg = sample_jpeg()
    rounds = []
    with served("loadtests.noop", "{port}") as local, served("loadtests.noop", "{port}", "--ray") as on_ray:
        for port in (local, on_ray):
            load_server(port, "/classify", jpeg, 8, 2)
        for _ in range(ROUNDS):
            rates = [
                load_server(port, "/classify", jpeg, CONNECTIONS, SECONDS).per_second
                for port in (local, on_ray)
            ]
            p50s = [load_server(port, "/classify", jpeg, 1, SECONDS / 2).p50_ms for port in (local, on_ray)]
            rounds.append((*rates, *p50s))
    return RayOverhead(*(statistics.median(values) for values in zip(*rounds, strict=True)))


def measure_scaling(replicas: Sequence[int] = REPLICAS) -> dict[int, float]:
    """Requests per second by the number of replicas of a model that sleeps."""
    jpeg, rates = sample_jpeg(), {}
    for count in replicas:
        sleeping = ("--ray", "--replicas", str(count), "--waits-ms", str(SLEEP_MS), "--max-batch", "1")
        with served("loadtests.noop", "{port}", *sleeping) as port:
            load_server(port, "/classify", jpeg, CONNECTIONS, 2)
            rates[count] = statistics.median(
                load_server(port, "/classify", jpeg, CONNECTIONS, SECONDS).per_second for _ in range(ROUNDS)
            )
    return rates
