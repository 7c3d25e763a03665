"""The event loop of a simulation: assigns arrivals to replicas in the order of the virtual clock."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from foveate.core.model import Rung
from foveate.scheduling.policy import PolicyFactory
from loadtests.simulate.machine import BatchTable, Disturbance, Machine, batch_table
from loadtests.simulate.record import SimulationRecord
from loadtests.simulate.replica import Replica
from loadtests.simulate.workload import Workload


@dataclass(frozen=True, slots=True)
class World:
    """The simulated system: one model on a number of equal replicas."""

    rungs: tuple[Rung, ...]
    """The rungs that a policy may choose, cheapest first, the last is full; all with latencies."""
    max_batch: int = 32
    max_items: int = 256
    """Largest number of waiting requests of a replica."""
    replicas: int = 1
    disturbance: Disturbance = field(default_factory=Disturbance)

    @property
    def batch_table(self) -> BatchTable:
        """Seconds of a batch by plan and size, without disturbance."""
        return batch_table(self.rungs, self.max_batch)

    @property
    def full_rate(self) -> float:
        """Requests per second that all replicas together can serve at full, in the best batch size."""
        table = self.batch_table[self.rungs[-1].plan]
        best = min(table[n] / n for n in range(1, self.max_batch + 1))
        return self.replicas / (best * self.disturbance.slowdown)


def simulate(world: World, policy: PolicyFactory, workload: Workload, seed: int) -> SimulationRecord:
    """Serve a workload. The same arguments give the same record.

    Two replicas are drawn at random for each request, and the request goes to the one with the shorter
    predicted wait (the power of two choices, Mitzenmacher 2001).
    """
    started, record, table = perf_counter(), SimulationRecord(workload), world.batch_table
    replicas = [
        Replica(
            world.rungs,
            policy,
            Machine(table, world.disturbance, seed * 1_000_003 + i),
            record,
            world.max_batch,
            world.max_items,
        )
        for i in range(world.replicas)
    ]
    draw = random.Random(seed).randrange  # noqa: S311 - not used for security
    ends: list[tuple[float, int]] = []
    class_index = workload.class_index.tolist()
    for number, at in enumerate(workload.at.tolist()):
        while ends and ends[0][0] <= at:
            _finish_next(replicas, ends)
        count = len(replicas)
        index = _shorter_wait(replicas, draw(count), draw(count), at) if count > 1 else 0
        replica = replicas[index]
        end = replica.arrive(replica.request(number, at, workload.classes[class_index[number]]), at)
        if end is not None:
            heapq.heappush(ends, (end, index))
    while ends:
        _finish_next(replicas, ends)
    for replica in replicas:
        replica.close()
    record.wall_s = perf_counter() - started
    return record


def _finish_next(replicas: Sequence[Replica], ends: list[tuple[float, int]]) -> None:
    """Finish the batch that ends next, and start the next batch of its replica."""
    now, index = heapq.heappop(ends)
    end = replicas[index].finish(now)
    if end is not None:
        heapq.heappush(ends, (end, index))


def _shorter_wait(replicas: Sequence[Replica], a: int, b: int, now: float) -> int:
    """The index of the replica with the shorter predicted wait."""
    return a if replicas[a].predicted_wait(now) <= replicas[b].predicted_wait(now) else b
