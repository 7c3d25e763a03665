"""The same policy on a virtual clock: against the best that could be done, and against real runs."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.core.model import Rung
from foveate.engine.policy import PolicyMaker
from loadtests.arrivals import schedule
from loadtests.load.result import Run
from loadtests.simulate.machine import Disturbance
from loadtests.simulate.oracle import upper_bound
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import Kind, Workload

SHAPES = ("constant", "poisson", "gamma:2", "gamma:4", "step:2", "step:4", "ramp:4", "onoff:4")
LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Times what full alone can serve."""
QUEUE_ITEMS = 1024
MAX_BATCH = 32


def oracle_ratios(
    rungs: Sequence[Rung], policy: PolicyMaker, slo_s: float, seconds: float, seed: int
) -> dict[str, float]:
    """For each shape, the least utility over the loads, as a share of what knowing all arrivals allows."""
    world = World(tuple(rungs), MAX_BATCH, QUEUE_ITEMS)
    found = {}
    for shape in SHAPES:
        ratios = []
        for load in LOADS:
            at = schedule(shape, load * world.full_rate, seconds, seed)
            workload = Workload.draw(at, [Kind(slo_s)], seed)
            record = simulate(world, policy, workload, seed)
            ratios.append(record.utility / upper_bound(world, workload))
        found[shape] = min(ratios)
    return found


def batches(run: Run) -> dict[tuple[str, int], list[float]]:
    """Seconds of the forwards of a real run by rung and size: those who shared one were told the same."""
    shared: dict[tuple[str, float], int] = defaultdict(int)
    for record in run.records:
        if "compute" in record.timings_ms:
            shared[record.rung, record.timings_ms["compute"]] += 1
    found = defaultdict(list)
    for (rung, took_ms), size in shared.items():
        found[rung, size].append(took_ms / 1e3)
    return dict(found)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a real run showed that no profile knows."""

    disturbance: Disturbance
    """How much longer than profiled its forwards took, and how evenly."""
    outside_s: float
    """What an answer took besides waiting and its forward: the wire, reading, decoding."""


def costs(run: Run, world: World) -> Costs:
    """From the answers of a run, which say where their time went."""
    named = {rung.plan.beside(world.rungs[-1].plan): world.costs[rung.plan] for rung in world.rungs}
    ran = [(seconds, named[rung][size]) for (rung, size), times in batches(run).items() for seconds in times]
    slower = sum(took for took, _ in ran) / sum(profiled for _, profiled in ran)
    noise = statistics.pstdev(math.log(took / profiled) for took, profiled in ran)
    outside = [
        record.latency_s - (record.timings_ms["queue"] + record.timings_ms["compute"]) / 1e3
        for record in run.records
        if "compute" in record.timings_ms
    ]
    return Costs(Disturbance(slower, noise, 0.0), statistics.median(outside))


def attained(
    run: Run, world: World, policy: PolicyMaker, costs: Costs, slo_s: float, min_quality: float
) -> float:
    """The attainment that is simulated for the arrivals of a real run, with the costs of another one."""
    at = np.array([record.at for record in run.records])
    workload = Workload.draw(at, [Kind(slo_s - costs.outside_s, min_quality)], 0)
    disturbed = replace(world, disturbance=costs.disturbance)
    return simulate(disturbed, policy, workload, 0).attainment
