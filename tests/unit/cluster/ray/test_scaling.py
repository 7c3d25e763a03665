"""The scaling policy as Ray Serve calls it, and the demand that a worker reports."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from foveate.cluster.ray.scaling import DEMAND_METRIC, DemandMeter, FullQualityDemandPolicy
from foveate.core.metrics import Metrics


@dataclass
class TimedValue:
    """A value of a series as Ray Serve stores it."""

    value: float
    timestamp: float = 0.0


@dataclass
class FakeContext:
    """The part of Ray Serve's AutoscalingContext that the policy reads."""

    target_num_replicas: int
    current_time: float | None
    raw_metrics: dict[str, dict[str, list[TimedValue]]] | None
    policy_state: dict[str, Any] = field(default_factory=dict)


def reports(*demands: float, at: float = 0.0) -> dict[str, dict[str, list[TimedValue]]]:
    """The reports of one replica for each demand; only the newest value of a series counts."""
    return {
        DEMAND_METRIC: {
            f"replica {i}": [TimedValue(9.0), TimedValue(demand, at)] for i, demand in enumerate(demands)
        }
    }


def test_the_demand_is_the_sum_of_the_newest_values_of_all_replicas() -> None:
    policy = FullQualityDemandPolicy(max_replicas=10, utilisation=0.5)
    replicas, state = policy(FakeContext(2, 100.0, reports(0.9, 0.9)))
    assert replicas == 4
    assert "1.80" in state["reason"]


def test_the_history_is_kept_in_the_state_that_serve_stores() -> None:
    policy = FullQualityDemandPolicy(max_replicas=10, utilisation=1.0, downscale_delay_s=60)
    state: dict[str, Any] = {}
    for second in range(0, 300, 5):
        demand = 4.0 if second < 30 else 0.5
        replicas, state = policy(FakeContext(4, float(second), reports(demand, at=second), state))
        if 30 <= second < 80:
            assert replicas == 4, "the downscale delay is not over"
    assert replicas == 1
    assert len(state["history"]) <= 2 * 60 / 5 + 1, "old samples are dropped"


def test_calls_between_two_reports_change_nothing() -> None:
    def decisions(call_interval_s: float) -> list[tuple[float, int]]:
        policy = FullQualityDemandPolicy(max_replicas=20, replica_startup_s=30)
        replicas, state = 1, dict[str, Any]()
        changes = []
        for tick in range(int(120 / call_interval_s)):
            now = tick * call_interval_s
            reported_at = 5.0 * (now // 5)
            context = FakeContext(replicas, now, reports(reported_at / 30, at=reported_at), state)
            desired, state = policy(context)
            if desired != replicas:
                replicas = desired
                changes.append((reported_at, desired))
        assert len(state["history"]) <= 2 * 300 / 5 + 1
        return changes

    assert decisions(0.5) == decisions(5.0)


def test_without_reports_the_number_of_replicas_stays() -> None:
    policy = FullQualityDemandPolicy(min_replicas=1, max_replicas=10)
    assert policy(FakeContext(3, 1.0, None))[0] == 3
    assert policy(FakeContext(3, None, {}))[0] == 3


def test_bounds_hold() -> None:
    policy = FullQualityDemandPolicy(min_replicas=2, max_replicas=3)
    assert policy(FakeContext(2, 1.0, reports(50.0)))[0] == 3
    assert policy(FakeContext(1, 1.0, None))[0] == 2


def test_a_worker_reports_the_demand_since_its_last_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("foveate.cluster.ray.scaling.monotonic", lambda: now[0])
    metrics = Metrics()
    meter = DemandMeter(metrics)
    metrics.demand.labels("a").inc(1.0)
    metrics.demand.labels("b").inc(0.5)
    now[0] += 3
    assert meter.read() == pytest.approx(0.5)
    now[0] += 1
    assert meter.read() == 0
