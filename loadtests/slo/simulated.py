"""The same policy on a virtual clock: against the best that could be done, and against real runs."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.core.model import Rung
from foveate.scheduling.policy import PolicyFactory
from loadtests.arrivals import schedule
from loadtests.load.result import Run
from loadtests.simulate.machine import Disturbance
from loadtests.simulate.oracle import upper_bound
from loadtests.simulate.record import End
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import RequestClass, Workload

SHAPES = ("constant", "poisson", "gamma:2", "gamma:4", "step:2", "step:4", "ramp:4", "onoff:4")
LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Times what full alone can serve."""
QUEUE_ITEMS = 1024
MAX_BATCH = 32
SPAN_S = 0.5
"""Over which forwards are taken together to tell how evenly a machine runs."""
QUANTILES = 20
"""Into how many kinds requests are cut by what happens outside of the engine."""
PAUSE_S, LEAST_S = 1.0, 0.01
"""Between the run before and the simulated one; and the least time that is left to any request."""
DRAWS = 3
"""Simulations whose mean is taken."""


def oracle_ratios(
    rungs: Sequence[Rung], policy: PolicyFactory, slo_s: float, seconds: float, seed: int
) -> dict[str, float]:
    """For each shape, the least utility over the loads, as a share of what knowing all arrivals allows."""
    world = World(tuple(rungs), MAX_BATCH, QUEUE_ITEMS)
    found = {}
    for shape in SHAPES:
        ratios = []
        for load in LOADS:
            at = schedule(shape, load * world.full_rate, seconds, seed)
            workload = Workload.draw(at, [RequestClass(slo_s)], seed)
            record = simulate(world, policy, workload, seed)
            ratios.append(record.utility / upper_bound(world, workload))
        found[shape] = min(ratios)
    return found


@dataclass(frozen=True, slots=True)
class Costs:
    """What a real run showed that no profile knows."""

    disturbance: Disturbance
    """How much longer than profiled its forwards took, how evenly, and what passed between two of them."""
    outside_s: tuple[float, ...]
    """What answers took besides waiting and their forward, for the wire, reading and decoding: quantiles."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward of a real run, as those told who were in it."""

    ended: float
    took_s: float
    profiled_s: float


def forwards(run: Run, world: World) -> list[Forward]:
    """In the order in which they ended, with what the profile says of each."""
    named = {
        rung.plan.relative_to(world.rungs[-1].plan): world.batch_table[rung.plan] for rung in world.rungs
    }
    shared: dict[tuple[str, float], list[float]] = defaultdict(list)
    for record in run.records:
        if "compute" in record.timings_ms:
            shared[record.rung, record.timings_ms["compute"]].append(record.ended)
    found = [
        Forward(min(ended), took_ms / 1e3, named[rung][len(ended)])
        for (rung, took_ms), ended in shared.items()
    ]
    return sorted(found, key=lambda forward: forward.ended)


def costs(run: Run, world: World) -> Costs:
    """From the answers of a run, which say where their time went."""
    ran = forwards(run, world)
    outside = [
        record.latency_s - (record.timings_ms["queue"] + record.timings_ms["compute"]) / 1e3
        for record in run.records
        if "compute" in record.timings_ms
    ]
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    gaps = [max(0.0, b.ended - b.took_s - a.ended) for a, b in itertools.pairwise(ran)]
    return Costs(
        Disturbance(slower(ran), unevenness(ran), 0.0, gap_s=statistics.median(gaps or [0.0])),
        tuple(np.quantile(outside, middles).tolist()),
    )


def slower(ran: Sequence[Forward]) -> float:
    """How many times as long as profiled they took together."""
    return sum(one.took_s for one in ran) / sum(one.profiled_s for one in ran)


def unevenness(ran: Sequence[Forward]) -> float:
    """Standard deviation of the logarithm of that, over spans of time: single forwards differ more, as those
    of one picture do that a decoder holds up, which the server predicts in part and has time to make up."""
    spans: dict[int, list[Forward]] = defaultdict(list)
    for one in ran:
        spans[int((one.ended - one.took_s / 2) / SPAN_S)].append(one)
    return statistics.pstdev(math.log(slower(span)) for span in spans.values())


def attained(
    run: Run,
    world: World,
    policy: PolicyFactory,
    learnt: Run,
    costs: Costs,
    slo_s: float,
    min_quality: float,
) -> float:
    """The attainment that is simulated for the arrivals of a real run, with the costs of another one, which
    the simulated server has been through before, as the real one has."""
    earlier, at = (np.array([record.at for record in one.records]) for one in (learnt, run))
    both = np.concatenate([earlier, at + learnt.span_s + PAUSE_S])
    kinds = [RequestClass(max(LEAST_S, slo_s - outside_s), min_quality) for outside_s in costs.outside_s]
    disturbed = replace(world, disturbance=costs.disturbance)
    found = [
        simulate(disturbed, policy, Workload.draw(both, kinds, seed), seed).end[len(earlier) :] == End.MET
        for seed in range(DRAWS)
    ]
    return float(np.mean(found))
