"""The comparison of autoscalers: choice of the cheapest equal one, figures, page and plot."""

from pathlib import Path
from types import MappingProxyType

import pytest

from foveate.core.profile import Profile
from loadtests.scale import day
from loadtests.scale.fleet import DayResult
from loadtests.simulate.machine import ladder

OPTIONS = day.DayOptions(seconds=60, peak=1.5, slowdown=8, seed=0)


@pytest.fixture(scope="module")
def results() -> MappingProxyType[str, DayResult]:
    return MappingProxyType(day.simulate_days(OPTIONS))


def test_every_autoscaler_serves_the_same_day(results: MappingProxyType[str, DayResult]) -> None:
    assert list(results) == list(day.scalers())
    assert len(results) == 1 + len(day.QUEUE_TARGETS) + len(day.CPU_TARGETS)
    assert len({len(result.record.end) for result in results.values()}) == 1
    assert all(result.replica_s > 0 for result in results.values())


def test_the_chosen_target_is_the_cheapest_of_the_equal_ones(
    results: MappingProxyType[str, DayResult],
) -> None:
    reference = results[day.FULL_QUALITY].record
    for prefix in ("queue length", "CPU"):
        chosen = day.cheapest_equal(results, prefix)
        assert chosen.startswith(prefix)
        cheaper = [
            result.record
            for name, result in results.items()
            if name.startswith(prefix) and result.replica_s < results[chosen].replica_s
        ]
        equal = [
            record
            for record in cheaper
            if record.attainment >= reference.attainment - day.TOLERANCE
            and record.mean_quality >= reference.mean_quality - day.TOLERANCE
        ]
        best = max(r.record.utility for name, r in results.items() if name.startswith(prefix))
        assert not equal or results[chosen].record.utility == best


def test_the_page_has_a_row_for_each_autoscaler_and_the_figures_are_ratios(
    results: MappingProxyType[str, DayResult], tmp_path: Path
) -> None:
    page = day.page(results, OPTIONS)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert all(sum(line.startswith(f"| {name} |") for line in rows) == 1 for name in results)
    assert sum(line.endswith("| yes |") for line in rows) == 3
    own = results[day.FULL_QUALITY]
    queue = results[day.cheapest_equal(results, "queue length")]
    figures = day.figures(results)
    assert figures["autoscale_replica_hours_vs_queue"] == round(own.replica_s / queue.replica_s, 3)
    day.draw(results, tmp_path / "day.png")
    assert (tmp_path / "day.png").read_bytes().startswith(b"\x89PNG")


def test_the_day_uses_the_shipped_profile() -> None:
    rungs = ladder(Profile.read(day.PROFILE.read_text(), "vit-t"))
    assert len(rungs) > 1
