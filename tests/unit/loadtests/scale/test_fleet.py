"""The simulated fleet: replicas that start, serve and stop, and the samples that autoscalers get."""

from collections.abc import Sequence

import numpy as np
import pytest

from foveate.autoscaler.policy import ScalingConfig
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.arrivals import schedule
from loadtests.scale.fleet import (
    DayResult,
    FleetSample,
    Scaler,
    full_quality_scaler,
    ratio_scaler,
    simulate_day,
)
from loadtests.simulate.machine import NO_DISTURBANCE
from loadtests.simulate.record import End
from loadtests.simulate.run import World
from loadtests.simulate.workload import RequestClass, Workload

FULL = Plan("tiny", 32)
RUNGS = tuple(
    Rung(plan, cost, 5, quality, {1: 0.1 * cost, 8: 0.8 * cost})
    for plan, cost, quality in ((Plan("tiny", 32, reducer="evit:0.3"), 0.25, 0.9), (FULL, 1.0, 1.0))
)
"""A replica serves ten requests per second at full quality, and forty on the cheapest rung."""
WORLD = World(RUNGS, max_batch=8, disturbance=NO_DISTURBANCE)
CONFIG = ScalingConfig(min_replicas=1, max_replicas=8, replica_startup_s=10, downscale_delay_s=40)


def simulated(
    scaler: Scaler, rate: float, seconds: float = 120, shape: str = "poisson", config: ScalingConfig = CONFIG
) -> DayResult:
    workload = Workload.draw(schedule(shape, rate, seconds, 0), [RequestClass(1.0)], 0)
    return simulate_day(WORLD, SloPolicy, workload, scaler, config, 5.0, 0)


def one_replica(rate: float) -> tuple[DayResult, list[FleetSample]]:
    """The result of one replica without autoscaling, and the samples that an autoscaler would get."""
    last: list[FleetSample] = []

    def keep(samples: Sequence[FleetSample], replicas: int) -> int:
        last[:] = samples
        return replicas

    return simulated(keep, rate), last


def test_demand_rises_although_latency_stays_low_at_lower_quality() -> None:
    low_load, before = one_replica(5)
    high_load, after = one_replica(25)
    assert low_load.record.attainment > 0.99 and high_load.record.attainment > 0.97
    latencies = [np.nanmedian(result.record.latency_s) for result in (low_load, high_load)]
    assert latencies[1] < 3 * latencies[0], "latency does not show the load"
    assert high_load.record.mean_quality < 0.95 < low_load.record.mean_quality
    demands = [np.mean([sample.demand for sample in samples[3:]]) for samples in (before, after)]
    assert demands == pytest.approx([0.5, 2.5], rel=0.15)


def test_added_replicas_restore_full_quality() -> None:
    alone, _ = one_replica(25)
    scaled = simulated(full_quality_scaler(CONFIG), 25)
    assert scaled.states[-1].serving in (3, 4, 5)
    assert scaled.record.mean_quality > alone.record.mean_quality + 0.05
    assert scaled.record.attainment > 0.99
    second_half = scaled.record.quality[len(scaled.record.quality) // 2 :]
    assert np.mean(second_half == 1.0) > 0.95


def test_replicas_take_their_startup_time_and_are_paid_for_during_it() -> None:
    scaled = simulated(full_quality_scaler(CONFIG), 25, 60)
    scale_up = next(state for state in scaled.states if state.desired > 1)
    serving = next(state for state in scaled.states if state.serving > 1)
    assert serving.at - scale_up.at == pytest.approx(CONFIG.replica_startup_s, abs=5.01)
    fixed = ScalingConfig(min_replicas=2, max_replicas=2)
    steady = simulated(full_quality_scaler(fixed), 5, 60, config=fixed)
    assert steady.replica_s == pytest.approx(2 * 60, rel=0.05)


def test_stopped_replicas_finish_their_requests() -> None:
    own = ScalingConfig(min_replicas=1, max_replicas=8, replica_startup_s=5, downscale_delay_s=10)
    by_demand = simulated(full_quality_scaler(own), 20, 180, "onoff:2")
    other = ScalingConfig(min_replicas=1, max_replicas=8, replica_startup_s=5, downscale_delay_s=5)
    by_queue = simulated(ratio_scaler(lambda sample: sample.queue_length, 1, other), 12, 180)
    for result in (by_demand, by_queue):
        assert (result.record.end != End.NONE).all()
    serving = [state.serving for state in by_queue.states]
    assert min(serving[10:]) < max(serving)


def test_the_ratio_scaler_follows_the_algorithm_of_kubernetes() -> None:
    scale = ratio_scaler(lambda sample: sample.utilisation, 0.5, CONFIG)
    samples = [FleetSample(0.0, 0, 0, 0.54)]
    assert scale(samples, 4) == 4, "the ratio is within the tolerance"
    samples.append(FleetSample(5.0, 0, 0, 0.9))
    assert scale(samples, 4) == 8
    samples.append(FleetSample(10.0, 0, 0, 0.1))
    assert scale(samples, 8) == 8, "the maximum of the stabilisation window holds"
    samples.append(FleetSample(60.0, 0, 0, 0.1))
    assert scale(samples, 8) == 2
