"""The event loop of a simulation: arrivals to replicas, in the order of the virtual clock."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from foveate.core.model import Rung
from foveate.scheduling.policy import PolicyFactory
from loadtests.simulate.machine import Costs, Disturbance, Machine, costs
from loadtests.simulate.record import Record
from loadtests.simulate.replica import Replica
from loadtests.simulate.workload import Workload


@dataclass(frozen=True, slots=True)
class World:
    """What a simulation runs on."""

    rungs: tuple[Rung, ...]
    """Those a policy may choose from, cheapest first, the last is full; all with latencies."""
    max_batch: int = 32
    max_items: int = 256
    """Requests that wait at one replica at most."""
    replicas: int = 1
    disturbance: Disturbance = field(default_factory=Disturbance)

    @property
    def costs(self) -> Costs:
        return costs(self.rungs, self.max_batch)

    @property
    def full_rate(self) -> float:
        """Requests a second that full compute can serve at its best batch, all replicas together."""
        table = self.costs[self.rungs[-1].plan]
        best = min(table[n] / n for n in range(1, self.max_batch + 1))
        return self.replicas / (best * self.disturbance.slower)


def simulate(world: World, policy: PolicyFactory, workload: Workload, seed: int) -> Record:
    """Serve a workload. Each request goes to the one of two replicas, drawn at random, that is predicted
    to have it wait less (Mitzenmacher 2001, the power of two choices). Same arguments, same record."""
    started, record, table = perf_counter(), Record(workload), world.costs
    fleet = [
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
    draw = random.Random(seed).randrange  # noqa: S311 - dice, not secrets
    ends: list[tuple[float, int]] = []
    kinds = workload.kind.tolist()
    for number, at in enumerate(workload.at.tolist()):
        while ends and ends[0][0] <= at:
            _finish(fleet, ends)
        index = _shorter_wait(fleet, draw(len(fleet)), draw(len(fleet)), at) if len(fleet) > 1 else 0
        replica = fleet[index]
        end = replica.arrive(replica.job(number, at, workload.kinds[kinds[number]]), at)
        if end is not None:
            heapq.heappush(ends, (end, index))
    while ends:
        _finish(fleet, ends)
    for replica in fleet:
        replica.close()
    record.wall_s = perf_counter() - started
    return record


def _finish(fleet: Sequence[Replica], ends: list[tuple[float, int]]) -> None:
    """The batch that ends next, ends."""
    now, index = heapq.heappop(ends)
    end = fleet[index].finish(now)
    if end is not None:
        heapq.heappush(ends, (end, index))


def _shorter_wait(fleet: Sequence[Replica], one: int, other: int, now: float) -> int:
    return one if fleet[one].predicted_wait(now) <= fleet[other].predicted_wait(now) else other
