"""The scaling policy on demand over time: up ahead of demand, down after a delay, and no oscillation."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.autoscaler.policy import (
    DemandSample,
    ScalingConfig,
    ScalingDecision,
    desired_replicas,
    forecast_demand,
)

CONFIG = ScalingConfig(
    min_replicas=1, max_replicas=20, utilisation=0.75, replica_startup_s=30, downscale_delay_s=120
)
INTERVAL_S = 5.0


def sampled(demand: Callable[[float], float], seconds: float) -> list[DemandSample]:
    return [DemandSample(at, demand(at)) for at in np.arange(0, seconds, INTERVAL_S).tolist()]


def simulated(
    samples: Sequence[DemandSample], replicas: int = 1, config: ScalingConfig = CONFIG
) -> list[int]:
    """The desired replicas at each sample, if each decision takes effect at once."""
    desired = []
    for index in range(len(samples)):
        replicas = desired_replicas(samples[: index + 1], replicas, config).replicas
        desired.append(replicas)
    return desired


def test_a_steady_demand_is_served_at_the_target_utilisation() -> None:
    desired = simulated(sampled(lambda _: 3.0, 600))
    assert desired[-1] == 4, "three replicas that are busy all the time are four at three quarters"
    assert desired == sorted(desired) and desired.index(4) <= 3


@pytest.mark.parametrize(
    ("demand", "replicas"), [(0.0, 1), (0.7, 1), (0.83, 2), (3.07, 4), (3.2, 5), (99, 20)]
)
def test_replicas_are_demand_over_utilisation_within_bounds(demand: float, replicas: int) -> None:
    assert simulated(sampled(lambda _: demand, 300))[-1] == replicas


def test_a_step_in_demand_is_answered_at_once_by_doubling() -> None:
    desired = simulated(sampled(lambda at: 0.5 if at < 300 else 9.0, 400))
    assert desired[59] == 1
    assert desired[60:65] == [2, 4, 8, 12, 12]


def test_replicas_for_a_rising_demand_are_ready_when_it_arrives() -> None:
    """The demand rises by one replica in a hundred seconds; a replica takes thirty seconds to start."""
    samples = sampled(lambda at: 1 + at / 100, 500)
    desired = simulated(samples)
    for number, now in enumerate(samples[20:-6], 20):
        demand_when_ready = samples[number + 6].demand
        assert desired[number] >= demand_when_ready / CONFIG.utilisation - CONFIG.slack - 0.2, now
    assert forecast_demand(samples, CONFIG) == pytest.approx(samples[-1].demand + 0.3, abs=0.02)


def test_replicas_stay_until_the_downscale_delay_is_over() -> None:
    desired = simulated(sampled(lambda at: 6.0 if at < 300 else 0.5, 600))
    fall = 300 / INTERVAL_S
    assert desired[int(fall) - 1] == 8
    assert set(desired[int(fall) : int(fall + CONFIG.downscale_delay_s / INTERVAL_S) - 1]) == {8}
    assert desired[-1] == 1


def test_no_replica_is_removed_before_the_history_covers_the_delay() -> None:
    decision = desired_replicas([DemandSample(0, 0.1), DemandSample(5, 0.1)], 7, CONFIG)
    assert decision.replicas == 7
    assert decision.reason == "no replica is removed: the history is shorter than the downscale delay"
    assert desired_replicas([], 3, CONFIG).replicas == 3


@pytest.mark.parametrize("seed", range(5))
def test_noise_changes_few_decisions(seed: int) -> None:
    """Poisson arrivals, 60 a second of 0.05 s each, counted over 15 s."""
    random = np.random.default_rng(seed)
    demands = iter((random.poisson(60 * 15, 10_000) / 15 * 0.05).tolist())
    desired = simulated(sampled(lambda _: next(demands), 3600), 4)
    changes = sum(a != b for a, b in itertools.pairwise(desired))
    assert changes <= 6, desired
    assert set(desired[100:]) <= {4, 5}


def test_a_pause_shorter_than_the_downscale_delay_removes_no_replica() -> None:
    desired = simulated(sampled(lambda at: 5.0 if at % 120 < 60 else 0.0, 1800))
    assert len(set(desired[20:])) == 1


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=60),
    st.integers(0, 30),
    st.integers(0, 5),
    st.integers(0, 20),
)
def test_bounds_hold_and_a_reason_is_given_for_any_history(
    demands: list[float], replicas: int, min_replicas: int, more: int
) -> None:
    config = ScalingConfig(min_replicas=min_replicas, max_replicas=min_replicas + more)
    history = [DemandSample(10.0 * i, demand) for i, demand in enumerate(demands)]
    decision = desired_replicas(history, replicas, config)
    assert min_replicas <= decision.replicas <= min_replicas + more
    assert decision.reason and math.isfinite(decision.needed)
    assert decision == desired_replicas(list(history), replicas, config)
    assert isinstance(decision, ScalingDecision)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3 and max_replicas is 2; use 0 <="),
        ({"min_replicas": -1}, "min_replicas is -1"),
        ({"utilisation": 0}, "utilisation is 0; use a value above 0 and at most 1"),
        ({"utilisation": 1.1}, "utilisation is 1.1; use a value above 0 and at most 1"),
        ({"max_growth_factor": 1}, "max_growth_factor is 1; use a value above 1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScalingConfig(**fields)  # type: ignore[arg-type]
