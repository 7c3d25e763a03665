"""The figures of a round, from its runs."""

from pathlib import Path

import pytest

from loadtests.load.images import catalogue
from loadtests.peers.measure import BenchSetup
from loadtests.slo.live import RateSearch, SloBench
from loadtests.slo.rounds import ServerRuns, live_figures, simulation_figures
from tests.support.slo_runs import RUNGS, slo_record, slo_run, step_run


def bench(tmp_path: Path) -> SloBench:
    setup = BenchSetup(
        "x.safetensors", "fp32", catalogue("scene", 1, 0), "scene", 1.0, (500.0,), (1.0,), tmp_path
    )
    return SloBench(setup, 500.0, 10.0)


def test_the_figures_compare_foveate_with_the_full_plan(tmp_path: Path) -> None:
    half = slo_run([slo_record(0.0), slo_record(0.5, "refused", "")], 1.0)
    all_in_time = slo_run([slo_record(0.0), slo_record(0.5, rung="evit:0.5")], 1.0)
    static = ServerRuns(RateSearch(8.0, []), half, [])
    foveate = ServerRuns(RateSearch(40.0, []), all_in_time, [step_run(2.6, 4.2)])
    figures = live_figures(bench(tmp_path), static, foveate, 1.0)
    assert (figures["overload_static_attainment"], figures["overload_attainment"]) == (0.5, 1.0)
    assert (figures["rate_ratio_static"], figures["rate_ratio_raw"]) == (5.0, 4.0)
    assert figures["overload_quality"] == pytest.approx(0.9)
    assert figures["overload_accuracy_loss_points"] == 0
    assert (figures["recovery_s"], figures["quality_back_s"]) == pytest.approx((0.75, 0.25))


def test_the_largest_difference_of_simulated_and_real_runs_is_the_figure(tmp_path: Path) -> None:
    run = slo_run((slo_record(n / 5, queue=1.0, compute=100.0 + n / 1000) for n in range(50)), 10.0)
    refused = slo_run([slo_record(0.0, "refused", ""), *run.records[1:]], 10.0)
    static = ServerRuns(RateSearch(0.0, []), run, [run])
    foveate = ServerRuns(RateSearch(0.0, []), run, [run, run, run, refused])
    figures = simulation_figures(bench(tmp_path), RUNGS, static, foveate)
    gaps = [figures[f"sim_real_{name}_gap_points"] for name in ("static", "overload", "beyond")]
    assert figures["sim_real_gap_points"] == max(gaps)
    assert figures["sim_real_spread_points"] == pytest.approx(2)
    assert figures["sim_real_beyond_real"] == pytest.approx(0.98)
