"""The scaling policy on demand over time: up in time, down with patience, and never to and fro."""

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

RULES = ScalingConfig(
    min_replicas=1, max_replicas=20, utilisation=0.75, replica_startup_s=30, downscale_delay_s=120
)
EVERY_S = 5.0


def over(demand: Callable[[float], float], seconds: float) -> list[DemandSample]:
    return [DemandSample(at, demand(at)) for at in np.arange(0, seconds, EVERY_S).tolist()]


def played(seen: Sequence[DemandSample], replicas: int = 1, rules: ScalingConfig = RULES) -> list[int]:
    """What was asked for at each time, had every decision been carried out."""
    found = []
    for index in range(len(seen)):
        replicas = desired_replicas(seen[: index + 1], replicas, rules).replicas
        found.append(replicas)
    return found


def test_a_steady_demand_is_met_with_room_and_stays_so() -> None:
    found = played(over(lambda _: 3.0, 600))
    assert found[-1] == 4, "three that are busy all the time take four at three quarters"
    assert found == sorted(found) and found.index(4) <= 3


@pytest.mark.parametrize(
    ("demand", "replicas"), [(0.0, 1), (0.7, 1), (0.83, 2), (3.07, 4), (3.2, 5), (99, 20)]
)
def test_replicas_are_demand_over_utilisation_within_bounds(demand: float, replicas: int) -> None:
    assert played(over(lambda _: demand, 300))[-1] == replicas


def test_a_step_is_answered_at_once_and_in_doublings() -> None:
    found = played(over(lambda at: 0.5 if at < 300 else 9.0, 400))
    assert found[59] == 1
    assert found[60:65] == [2, 4, 8, 12, 12]


def test_what_rises_is_met_before_it_is_there() -> None:
    """A replica more every hundred seconds: half a minute ahead, and its room."""
    seen = over(lambda at: 1 + at / 100, 500)
    found = played(seen)
    for number, now in enumerate(seen[20:-6], 20):
        when_ready = seen[number + 6].demand
        assert found[number] >= when_ready / RULES.utilisation - RULES.slack - 0.2, now
    assert forecast_demand(seen, RULES) == pytest.approx(seen[-1].demand + 0.3, abs=0.02)


def test_what_falls_keeps_its_replicas_until_the_calm_is_over_and_then_loses_them() -> None:
    found = played(over(lambda at: 6.0 if at < 300 else 0.5, 600))
    fell = 300 / EVERY_S
    assert found[int(fell) - 1] == 8
    assert set(found[int(fell) : int(fell + RULES.downscale_delay_s / EVERY_S) - 1]) == {8}
    assert found[-1] == 1


def test_nothing_is_taken_away_before_enough_has_been_seen() -> None:
    decision = desired_replicas([DemandSample(0, 0.1), DemandSample(5, 0.1)], 7, RULES)
    assert (decision.replicas, decision.reason) == (7, "too little has been seen to take any away")
    assert desired_replicas([], 3, RULES).replicas == 3


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_reason_to_change(seed: int) -> None:
    """Requests that come at random, counted over a quarter of a minute, at a twentieth of a second each."""
    random = np.random.default_rng(seed)
    counts = iter((random.poisson(60 * 15, 10_000) / 15 * 0.05).tolist())
    found = played(over(lambda _: next(counts), 3600), 4)
    changes = sum(a != b for a, b in itertools.pairwise(found))
    assert changes <= 6, found
    assert set(found[100:]) <= {4, 5}


def test_a_pause_shorter_than_the_calm_costs_no_restart() -> None:
    found = played(over(lambda at: 5.0 if at % 120 < 60 else 0.0, 1800))
    assert len(set(found[20:])) == 1


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=60),
    st.integers(0, 30),
    st.integers(0, 5),
    st.integers(0, 20),
)
def test_whatever_was_seen_the_bounds_hold_and_a_reason_is_given(
    demands: list[float], replicas: int, min_replicas: int, more: int
) -> None:
    rules = ScalingConfig(min_replicas=min_replicas, max_replicas=min_replicas + more)
    decision = desired_replicas([DemandSample(10.0 * i, d) for i, d in enumerate(demands)], replicas, rules)
    assert min_replicas <= decision.replicas <= min_replicas + more
    assert decision.reason and math.isfinite(decision.needed)
    assert decision == desired_replicas(
        [DemandSample(10.0 * i, d) for i, d in enumerate(demands)], replicas, rules
    )
    assert isinstance(decision, ScalingDecision)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_replicas": 3, "max_replicas": 2},
        {"min_replicas": -1},
        {"utilisation": 0},
        {"utilisation": 1.1},
        {"max_growth_factor": 1},
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at (least|most)|above"):
        ScalingConfig(**wrong)  # type: ignore[arg-type]
