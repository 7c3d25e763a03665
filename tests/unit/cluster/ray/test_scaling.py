"""The scaling policy as Ray Serve asks it."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from foveate.cluster.ray.scaling import DEMAND, DemandMeter, FullQualityDemandPolicy
from foveate.core.metrics import Metrics


@dataclass
class Value:
    value: float
    timestamp: float = 0.0


@dataclass
class Asked:
    """What Serve tells a policy."""

    target_num_replicas: int
    current_time: float | None
    raw_metrics: dict[str, dict[str, list[Value]]] | None
    policy_state: dict[str, Any] = field(default_factory=dict)


def reported(*demands: float, at: float = 0.0) -> dict[str, dict[str, list[Value]]]:
    return {DEMAND: {f"replica {i}": [Value(9.0), Value(demand, at)] for i, demand in enumerate(demands)}}


def test_the_newest_of_what_all_replicas_report_counts() -> None:
    policy = FullQualityDemandPolicy(max_replicas=10, utilisation=0.5)
    replicas, state = policy(Asked(2, 100.0, reported(0.9, 0.9)))
    assert replicas == 4
    assert "1.80" in state["reason"]


def test_it_remembers_through_what_serve_keeps_for_it() -> None:
    policy = FullQualityDemandPolicy(max_replicas=10, utilisation=1.0, downscale_delay_s=60)
    state: dict[str, Any] = {}
    for second in range(0, 300, 5):
        demand = 4.0 if second < 30 else 0.5
        replicas, state = policy(Asked(4, float(second), reported(demand, at=second), state))
        if 30 <= second < 80:
            assert replicas == 4, "it has not been calm for long enough"
    assert replicas == 1
    assert len(state["history"]) <= 2 * 60 / 5 + 1, "it forgets what is of no use"


def test_being_asked_more_often_than_told_changes_nothing() -> None:
    def decisions(asked_every: float) -> list[tuple[float, int]]:
        policy, replicas, state = (
            FullQualityDemandPolicy(max_replicas=20, replica_startup_s=30),
            1,
            dict[str, Any](),
        )
        found = []
        for tick in range(int(120 / asked_every)):
            now = tick * asked_every
            told = 5.0 * (now // 5)
            wanted, state = policy(Asked(replicas, now, reported(told / 30, at=told), state))
            if wanted != replicas:
                replicas = wanted
                found.append((told, wanted))
        assert len(state["history"]) <= 2 * 300 / 5 + 1
        return found

    assert decisions(0.5) == decisions(5.0)


def test_nothing_reported_changes_nothing() -> None:
    policy = FullQualityDemandPolicy(min_replicas=1, max_replicas=10)
    assert policy(Asked(3, 1.0, None))[0] == 3
    assert policy(Asked(3, None, {}))[0] == 3


def test_bounds_hold() -> None:
    policy = FullQualityDemandPolicy(min_replicas=2, max_replicas=3)
    assert policy(Asked(2, 1.0, reported(50.0)))[0] == 3
    assert policy(Asked(1, 1.0, None))[0] == 2


def test_a_worker_reports_what_has_come_since_it_last_did(monkeypatch: pytest.MonkeyPatch) -> None:
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
