"""What Ray Serve costs beside one process, and whether replicas add up."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.overhead import load_server, sample_jpeg, served

CONNECTIONS = 32
REPLICAS = (1, 2, 4)
WAITS_MS = 20
"""Of the model that only waits, for one picture at a time."""
ROUNDS, SECONDS = 3, 5.0


@dataclass(frozen=True, slots=True)
class Noop:
    """A model that does nothing, in one process and on Ray; medians."""

    local_rps: float
    ray_rps: float
    local_p50_ms: float
    ray_p50_ms: float

    @property
    def added_ms(self) -> float:
        """To a lone request."""
        return self.ray_p50_ms - self.local_p50_ms


def noop() -> Noop:
    """Both servers up at once, asked in turns."""
    jpeg = sample_jpeg()
    found = []
    with served("loadtests.noop", "{port}") as local, served("loadtests.noop", "{port}", "--ray") as on_ray:
        for port in (local, on_ray):
            load_server(port, "/classify", jpeg, 8, 2)
        for _ in range(ROUNDS):
            many = [
                load_server(port, "/classify", jpeg, CONNECTIONS, SECONDS).per_second
                for port in (local, on_ray)
            ]
            lone = [load_server(port, "/classify", jpeg, 1, SECONDS / 2).p50_ms for port in (local, on_ray)]
            found.append((*many, *lone))
    return Noop(*(statistics.median(values) for values in zip(*found, strict=True)))


def scaling(replicas: Sequence[int] = REPLICAS) -> dict[int, float]:
    """Requests a second of so many replicas of a model that only waits."""
    jpeg, found = sample_jpeg(), {}
    for count in replicas:
        waits = ("--ray", "--replicas", str(count), "--waits-ms", str(WAITS_MS), "--max-batch", "1")
        with served("loadtests.noop", "{port}", *waits) as port:
            load_server(port, "/classify", jpeg, CONNECTIONS, 2)
            found[count] = statistics.median(
                load_server(port, "/classify", jpeg, CONNECTIONS, SECONDS).per_second for _ in range(ROUNDS)
            )
    return found
