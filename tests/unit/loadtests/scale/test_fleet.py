"""A simulated fleet: replicas that come, serve and go, and what autoscalers are shown."""

import numpy as np
import pytest

from foveate.autoscaler.policy import ScalingConfig
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.arrivals import schedule
from loadtests.scale.fleet import Day, Gauge, Scaler, by_ratio, day, full_quality
from loadtests.simulate.machine import NO_DISTURBANCE
from loadtests.simulate.record import End
from loadtests.simulate.run import World
from loadtests.simulate.workload import RequestClass, Workload

FULL = Plan("tiny", 32)
RUNGS = tuple(
    Rung(plan, cost, 5, quality, {1: 0.1 * cost, 8: 0.8 * cost})
    for plan, cost, quality in ((Plan("tiny", 32, reducer="evit:0.3"), 0.25, 0.9), (FULL, 1.0, 1.0))
)
"""Ten a second at full, forty at least."""
WORLD = World(RUNGS, max_batch=8, disturbance=NO_DISTURBANCE)
RULES = ScalingConfig(min_replicas=1, max_replicas=8, replica_startup_s=10, downscale_delay_s=40)


def played(
    scaler: Scaler, rate: float, seconds: float = 120, shape: str = "poisson", rules: ScalingConfig = RULES
) -> Day:
    workload = Workload.draw(schedule(shape, rate, seconds, 0), [RequestClass(1.0)], 0)
    return day(WORLD, SloPolicy, workload, scaler, rules, 5.0, 0)


def shown_to(rate: float) -> tuple[Day, list[Gauge]]:
    """What an autoscaler that never does anything is shown."""
    kept: list[Gauge] = []

    def still(shown: list[Gauge], replicas: int) -> int:
        kept[:] = shown
        return replicas

    return played(still, rate), kept  # type: ignore[arg-type]


def test_the_signal_rises_though_the_server_keeps_its_promises_by_spending_less() -> None:
    calm, before = shown_to(5)
    busy, after = shown_to(25)
    assert calm.record.attainment > 0.99 and busy.record.attainment > 0.97
    latencies = [np.nanmedian(one.record.latency_s) for one in (calm, busy)]
    assert latencies[1] < 3 * latencies[0], "nobody who waits could tell"
    assert busy.record.mean_quality < 0.95 < calm.record.mean_quality
    demands = [np.mean([gauge.demand for gauge in shown[3:]]) for shown in (before, after)]
    assert demands == pytest.approx([0.5, 2.5], rel=0.15)


def test_replicas_are_added_where_they_are_needed_and_quality_returns() -> None:
    alone, _ = shown_to(25)
    scaled = played(full_quality(RULES), 25)
    assert scaled.moments[-1].serving in (3, 4, 5)
    assert scaled.record.mean_quality > alone.record.mean_quality + 0.05
    assert scaled.record.attainment > 0.99
    late = scaled.record.quality[len(scaled.record.quality) // 2 :]
    assert np.mean(late == 1.0) > 0.95


def test_replicas_take_their_time_to_start_and_are_paid_for_meanwhile() -> None:
    one = played(full_quality(RULES), 25, 60)
    first = next(moment for moment in one.moments if moment.wanted > 1)
    serving = next(moment for moment in one.moments if moment.serving > 1)
    assert serving.at - first.at == pytest.approx(RULES.replica_startup_s, abs=5.01)
    steady = played(
        full_quality(ScalingConfig(min_replicas=2, max_replicas=2)),
        5,
        60,
        rules=ScalingConfig(min_replicas=2, max_replicas=2),
    )
    assert steady.replica_s == pytest.approx(2 * 60, rel=0.05)


def test_replicas_that_leave_lose_nobody() -> None:
    one = played(
        full_quality(
            ScalingConfig(min_replicas=1, max_replicas=8, replica_startup_s=5, downscale_delay_s=10)
        ),
        20,
        180,
        "onoff:2",
    )
    ended = played(
        by_ratio(
            lambda seen: seen.waiting,
            1,
            ScalingConfig(min_replicas=1, max_replicas=8, replica_startup_s=5, downscale_delay_s=5),
        ),
        12,
        180,
    )
    for found in (one, ended):
        assert (found.record.end != End.NONE).all()
    assert min(m.serving for m in ended.moments[10:]) < max(m.serving for m in ended.moments)


def test_the_others_scale_as_kubernetes_does() -> None:
    scale = by_ratio(lambda seen: seen.busy, 0.5, RULES)
    told = [Gauge(0.0, 0, 0, 0.54)]
    assert scale(told, 4) == 4, "within a tenth"
    told.append(Gauge(5.0, 0, 0, 0.9))
    assert scale(told, 4) == 8
    told.append(Gauge(10.0, 0, 0, 0.1))
    assert scale(told, 8) == 8, "what was wanted within the window stands"
    told.append(Gauge(60.0, 0, 0, 0.1))
    assert scale(told, 8) == 2
