"""Costs of real runs, and their simulation."""

import math

import pytest

from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import PolicyFactory
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.load.result import LoadTestRun
from loadtests.simulate.machine import NO_DISTURBANCE
from loadtests.simulate.run import World
from loadtests.slo import simulated
from tests.support.slo_runs import RUNGS, slo_record, slo_run

WORLD = World(RUNGS, max_batch=8, disturbance=NO_DISTURBANCE)


def test_answers_with_the_same_compute_time_shared_a_forward() -> None:
    together = [slo_record(n / 100, queue=5.0, compute=20.001) for n in range(8)]
    single = [slo_record(1.0, rung="evit:0.5", queue=0.0, compute=10.5), slo_record(2.0, "refused", "")]
    forwards = simulated.forwards(slo_run([*together, *single], 3.0), WORLD)
    assert [(forward.ended, forward.profiled_s) for forward in forwards] == [(0.15, 0.8), (1.15, 0.01)]
    assert [forward.elapsed_s for forward in forwards] == pytest.approx([0.020001, 0.0105])


def test_costs_are_relative_to_the_profile_and_include_the_time_outside_the_engine() -> None:
    together = [slo_record(n / 100, queue=20.0, compute=1200.0) for n in range(8)]
    single = [slo_record(1.0, rung="evit:0.5", queue=120.0, compute=15.0)]
    costs = simulated.costs(slo_run([*together, *single], 3.0), WORLD)
    assert costs.disturbance.slowdown == pytest.approx((1.2 + 0.015) / (0.8 + 0.01))
    assert simulated.costs(slo_run(single, 3.0), WORLD).outside_s == pytest.approx([0.015] * 20)


def test_the_time_between_forwards_is_from_an_end_to_the_next_start() -> None:
    """Forwards of 80 ms every 100 ms."""
    records = [slo_record(n / 10, queue=1.0, compute=80.0 + n / 1000) for n in range(5)]
    costs = simulated.costs(slo_run(records, 1.0), WORLD)
    assert costs.disturbance.gap_s == pytest.approx(0.02, abs=1e-4)


def test_variation_is_over_windows_of_time_and_not_between_single_forwards() -> None:
    def forward(at: float, elapsed_s: float) -> simulated.Forward:
        return simulated.Forward(at + elapsed_s / 2, elapsed_s, 0.1)

    alternating = [forward(n / 20, 0.05 if n % 2 else 0.15) for n in range(100)]
    assert simulated.unevenness(alternating) < 0.05
    by_the_second = [forward(n / 20, 0.05 if n // 20 % 2 else 0.15) for n in range(80)]
    assert simulated.unevenness(by_the_second) == pytest.approx(math.log(3) / 2, rel=0.1)


def test_the_arrivals_of_a_run_are_simulated_with_its_costs() -> None:
    run = slo_run((slo_record(n / 5, queue=1.0, compute=100.0 + n / 1000) for n in range(50)), 10.0)
    costs = simulated.costs(run, WORLD)

    def attained(other: LoadTestRun, policy: PolicyFactory, min_quality: float) -> float:
        return simulated.attained(other, WORLD, policy, run, costs, 0.5, min_quality)

    assert attained(run, Fifo, 0.0) == 1
    overload = slo_run((slo_record(n / 50, queue=1.0, compute=100.0 + n / 1000) for n in range(500)), 10.0)
    assert attained(overload, Fifo, 0.0) < 0.5
    assert attained(overload, SloPolicy, 0.0) > 0.9
    assert attained(overload, SloPolicy, 1.0) < 0.5


def test_the_oracle_is_an_upper_bound_for_every_shape() -> None:
    ratios = simulated.oracle_ratios(RUNGS, SloPolicy, 0.5, 2.0, 0)
    assert set(ratios) == set(simulated.SHAPES)
    assert all(0.3 < ratio <= 1 for ratio in ratios.values())
