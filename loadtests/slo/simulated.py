"""The policy on a virtual clock, compared with an upper bound and with real runs."""

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
from loadtests.load.result import LoadTestRun
from loadtests.simulate.machine import Disturbance
from loadtests.simulate.oracle import upper_bound
from loadtests.simulate.record import End
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import RequestClass, Workload

SHAPES = ("constant", "poisson", "gamma:2", "gamma:4", "step:2", "step:4", "ramp:4", "onoff:4")
LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Offered rates, as multiples of the rate of the full plan."""
QUEUE_ITEMS = 1024
MAX_BATCH = 32
SPAN_S = 0.5
"""The window over which forwards are averaged for the variation of the machine."""
QUANTILES = 20
"""The number of request kinds, which differ in their time outside the engine."""
PAUSE_S, MIN_SLO_S = 1.0, 0.01
"""The pause between the earlier run and the simulated one, and the minimum deadline of a request."""
DRAWS = 3
"""The number of simulations that are averaged."""


def oracle_ratios(
    rungs: Sequence[Rung], policy: PolicyFactory, slo_s: float, seconds: float, seed: int
) -> dict[str, float]:
    """For each shape, the minimum over LOADS of the utility relative to the bound that knows all arrivals."""
    world = World(tuple(rungs), MAX_BATCH, QUEUE_ITEMS)
    minima = {}
    for shape in SHAPES:
        ratios = []
        for load in LOADS:
            at = schedule(shape, load * world.full_rate, seconds, seed)
            workload = Workload.draw(at, [RequestClass(slo_s)], seed)
            record = simulate(world, policy, workload, seed)
            ratios.append(record.utility / upper_bound(world, workload))
        minima[shape] = min(ratios)
    return minima


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Costs of a real run that a profile does not have."""

    disturbance: Disturbance
    """The time of forwards relative to the profile, its variation, and the time between forwards."""
    outside_s: tuple[float, ...]
    """Quantiles of the time outside queue and forward: network, reading and decoding."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward of a real run, from the timings in its answers."""

    ended: float
    elapsed_s: float
    profiled_s: float


def forwards(run: LoadTestRun, world: World) -> list[Forward]:
    """The forwards in the order of their ends. Answers with the same compute time shared a forward."""
    costs_of = {
        rung.plan.relative_to(world.rungs[-1].plan): world.batch_table[rung.plan] for rung in world.rungs
    }
    shared: dict[tuple[str, float], list[float]] = defaultdict(list)
    for record in run.records:
        if "compute" in record.timings_ms:
            shared[record.rung, record.timings_ms["compute"]].append(record.ended)
    result = [
        Forward(min(ended), compute_ms / 1e3, costs_of[rung][len(ended)])
        for (rung, compute_ms), ended in shared.items()
    ]
    return sorted(result, key=lambda forward: forward.ended)


def costs(run: LoadTestRun, world: World) -> MeasuredCosts:
    """The costs, from the timings in the answers of a run."""
    ran = forwards(run, world)
    outside = [
        record.latency_s - (record.timings_ms["queue"] + record.timings_ms["compute"]) / 1e3
        for record in run.records
        if "compute" in record.timings_ms
    ]
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    gaps = [max(0.0, b.ended - b.elapsed_s - a.ended) for a, b in itertools.pairwise(ran)]
    return MeasuredCosts(
        Disturbance(slowdown(ran), unevenness(ran), 0.0, gap_s=statistics.median(gaps or [0.0])),
        tuple(np.quantile(outside, middles).tolist()),
    )


def slowdown(ran: Sequence[Forward]) -> float:
    """Total time of the forwards relative to the profile."""
    return sum(forward.elapsed_s for forward in ran) / sum(forward.profiled_s for forward in ran)


def unevenness(ran: Sequence[Forward]) -> float:
    """Standard deviation of the logarithm of `slowdown` over windows of SPAN_S.

    Single forwards vary more, for example when a decoder delays one. The server predicts part of that
    variation and has time to compensate for it.
    """
    spans: dict[int, list[Forward]] = defaultdict(list)
    for forward in ran:
        spans[int((forward.ended - forward.elapsed_s / 2) / SPAN_S)].append(forward)
    return statistics.pstdev(math.log(slowdown(span)) for span in spans.values())


def attained(
    run: LoadTestRun,
    world: World,
    policy: PolicyFactory,
    earlier: LoadTestRun,
    costs: MeasuredCosts,
    slo_s: float,
    min_quality: float,
) -> float:
    """The simulated attainment for the arrivals of a real run, with the costs of an earlier run.

    The simulated server serves the earlier run first, as the real server has.
    """
    earlier_at, at = (np.array([record.at for record in r.records]) for r in (earlier, run))
    all_at = np.concatenate([earlier_at, at + earlier.span_s + PAUSE_S])
    classes = [RequestClass(max(MIN_SLO_S, slo_s - outside_s), min_quality) for outside_s in costs.outside_s]
    disturbed = replace(world, disturbance=costs.disturbance)
    in_time = [
        simulate(disturbed, policy, Workload.draw(all_at, classes, seed), seed).end[len(earlier_at) :]
        == End.MET
        for seed in range(DRAWS)
    ]
    return float(np.mean(in_time))
