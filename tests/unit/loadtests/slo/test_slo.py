"""What `make bench-slo` makes of runs: recovery after a step, costs for the simulator, counts, the page."""

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from string import Formatter

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import PolicyFactory
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.load.pictures import catalogue
from loadtests.load.records import Kind, Record
from loadtests.load.result import Cost, Run
from loadtests.peers.measure import Setup
from loadtests.simulate.__main__ import read_rungs
from loadtests.simulate.machine import NO_DISTURBANCE
from loadtests.simulate.run import World
from loadtests.slo import decisions, late, simulated
from loadtests.slo.live import recovery
from loadtests.slo.page import TEXT, page

FULL = Plan("tiny", 32)
LIGHT = Plan("tiny", 32, reducer="evit:0.5")
RUNGS = (Rung(LIGHT, 0.25, 5, 0.8, {1: 0.01, 8: 0.02}), Rung(FULL, 1.0, 10, 1.0, {1: 0.1, 8: 0.8}))
WORLD = World(RUNGS, max_batch=8, disturbance=NO_DISTURBANCE)


def record(at: float, kind: Kind = "in time", rung: str = "full", **timings_ms: float) -> Record:
    quality = {"full": 1.0, "evit:0.5": 0.8, "": None}[rung]
    status = 200 if rung else 429
    return Record("all", 0.5, at, at, at + 0.15, status, kind, rung, quality, bool(rung) or None, timings_ms)


def run(records: Iterable[Record], span_s: float) -> Run:
    found = tuple(records)
    cost = Cost(0.1, span_s, 1, len(found))
    return Run("a run", "python", "2026-01-01", "a machine", {"shape": "step:4"}, span_s, cost, found)


def step(broken_until: float, degraded_until: float) -> Run:
    """Ten a second for 6 s; broken from 2 s on, degraded up to a point, answered at full else."""

    def one(at: float) -> Record:
        if 2 <= at < broken_until:
            return record(at, "refused", "")
        return record(at, "in time", "evit:0.5" if 2 <= at < degraded_until else "full")

    return run((one(n / 10) for n in range(60)), 6.0)


@pytest.mark.parametrize(
    ("broken_until", "degraded_until", "recovery_s", "quality_back_s"),
    [(0, 0, 0, 0), (2.2, 4.0, 0.25, 0), (2.6, 4.2, 0.75, 0.25), (4.0, 5.0, 2, 1), (0, 6.0, 0, 2)],
)
def test_recovery_counts_to_the_end_of_the_last_quarter_that_broke_the_promise(
    broken_until: float, degraded_until: float, recovery_s: float, quality_back_s: float
) -> None:
    found = recovery(step(broken_until, degraded_until))
    assert found.recovery_s == pytest.approx(recovery_s)
    assert found.quality_back_s == pytest.approx(quality_back_s)


def test_those_who_were_told_the_same_seconds_shared_a_forward() -> None:
    together = [record(n / 100, queue=5.0, compute=20.001) for n in range(8)]
    alone = [record(1.0, rung="evit:0.5", queue=0.0, compute=10.5), record(2.0, "refused", "")]
    found = simulated.forwards(run([*together, *alone], 3.0), WORLD)
    assert [(one.ended, one.profiled_s) for one in found] == [(0.15, 0.8), (1.15, 0.01)]
    assert [one.took_s for one in found] == pytest.approx([0.020001, 0.0105])


def test_costs_are_what_forwards_took_beyond_the_profile_and_what_lay_outside() -> None:
    together = [record(n / 100, queue=20.0, compute=1200.0) for n in range(8)]
    alone = [record(1.0, rung="evit:0.5", queue=120.0, compute=15.0)]
    found = simulated.costs(run([*together, *alone], 3.0), WORLD)
    assert found.disturbance.slowdown == pytest.approx((1.2 + 0.015) / (0.8 + 0.01))
    assert simulated.costs(run(alone, 3.0), WORLD).outside_s == pytest.approx([0.015] * 20)


def test_what_passes_between_forwards_lies_from_one_end_to_the_next_start() -> None:
    """Forwards of 80 ms every 100."""
    ran = [record(n / 10, queue=1.0, compute=80.0 + n / 1000) for n in range(5)]
    assert simulated.costs(run(ran, 1.0), WORLD).disturbance.gap_s == pytest.approx(0.02, abs=1e-4)


def test_a_machine_is_uneven_over_spans_of_time_and_not_from_forward_to_forward() -> None:
    def forward(at: float, took_s: float) -> simulated.Forward:
        return simulated.Forward(at + took_s / 2, took_s, 0.1)

    evened_out = [forward(n / 20, 0.05 if n % 2 else 0.15) for n in range(100)]
    assert simulated.unevenness(evened_out) < 0.05
    by_the_second = [forward(n / 20, 0.05 if n // 20 % 2 else 0.15) for n in range(80)]
    assert simulated.unevenness(by_the_second) == pytest.approx(math.log(3) / 2, rel=0.1)


def test_arrivals_of_a_run_are_simulated_at_its_costs() -> None:
    ran = run((record(n / 5, queue=1.0, compute=100.0 + n / 1000) for n in range(50)), 10.0)
    costs = simulated.costs(ran, WORLD)

    def attained(tried: Run, policy: PolicyFactory, min_rung: float) -> float:
        return simulated.attained(tried, WORLD, policy, ran, costs, 0.5, min_rung)

    assert attained(ran, Fifo, 0.0) == 1
    crowded = run((record(n / 50, queue=1.0, compute=100.0 + n / 1000) for n in range(500)), 10.0)
    assert attained(crowded, Fifo, 0.0) < 0.5
    assert attained(crowded, SloPolicy, 0.0) > 0.9
    assert attained(crowded, SloPolicy, 1.0) < 0.5


def test_the_oracle_bounds_every_shape() -> None:
    found = simulated.oracle_ratios(RUNGS, SloPolicy, 0.5, 2.0, 0)
    assert set(found) == set(simulated.SHAPES)
    assert all(0.3 < ratio <= 1 for ratio in found.values())


def test_a_decision_is_timed() -> None:
    found = decisions.cost_ms(read_rungs("vit-t"))
    assert set(found) == {"decision_ms_at_1000", "admission_ms_at_1000"}
    assert all(value > 0 for value in found.values())


def test_no_forward_of_a_real_model_is_spent_on_who_is_late_or_gone() -> None:
    found = late.count()
    assert found["late_forwards"] == 0
    assert 0 < found["late_answered"] <= found["late_ran"] < found["late_offered"]


def test_the_page_tells_of_every_goal(tmp_path: Path) -> None:
    setup = Setup("x.safetensors", "bf16", catalogue("scene", 2, 0), "scene", 1.0, (500.0,), (1.0,), tmp_path)
    figures: dict[str, float] = defaultdict(float, rate_litserve=41.5, rate_ratio_best_peer=3.25)
    for _, field, _, _ in Formatter().parse(TEXT):
        figures[field or ""] += 0.0
    told = page(figures, ["litserve"], {"mosec": "it did not install"}, setup, 3)
    assert "| litserve | 41.50 | - |" in told
    assert "3.25" in told
    assert "mosec was left out: it did not install" in told
