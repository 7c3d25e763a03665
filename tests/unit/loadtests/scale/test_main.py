"""The sections of the page: goals, and tables of the measured figures."""

import pytest

from loadtests.scale.__main__ import SECTIONS, caches_page, main, ray_figures, ray_page
from loadtests.scale.on_ray import RayOverhead

MEASURED = {
    "response_computed_p50_ms": 25.0,
    "response_hit_p50_ms": 2.5,
    "response_hit_p50_ms_redis": 3.0,
    "feature_hit_speedup": 4.0,
    "features": [["click", 30.0, 7.5, 10.0]],
    "redis_hits": [100, 0, 68],
    "redis_p99_ms": [35.0, 40.0, 36.0],
    "redis_down_requests": 360,
    "redis_down_errors": 0,
}


def test_the_section_of_caches_has_goals_and_phases() -> None:
    page = caches_page(MEASURED)
    assert "| cached answer in memory, ms | 2.50 | at most 2 | **missed** |" in page
    assert "| smallest gain of a second task, times as fast | 4.0 | at least 3 | met |" in page
    assert "| click | 30.00 | 7.50 | 4.0 | 10.00 |" in page
    assert "| killed | 0 | 40 |" in page
    assert "| requests without an answer | 0 |" in page


def test_the_section_of_ray_compares_with_one_process() -> None:
    page = ray_page(RayOverhead(2000, 1600, 0.8, 6.9), {1: 45.0, 2: 90.0})
    assert "| no-op requests/s on Ray | 1600 | at least 1,500 | met |" in page
    assert "| p50 added to one request at a time, ms | 6.10 | below 6 | **missed** |" in page
    assert "| 2 | 90 | 2.00 |" in page


def test_the_figures_of_ray_are_relative_to_one_process_and_one_replica() -> None:
    assert ray_figures(RayOverhead(2000, 1600, 0.8, 6.9), {1: 45.0, 2: 90.0}) == {
        "ray_noop_rps": 1600,
        "ray_noop_ratio_local": 0.8,
        "ray_added_p50_ms": 6.1,
        "replica_scaling_2": 2.0,
    }


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "unknown"])
    message = capsys.readouterr().err
    assert all(name in message for name in SECTIONS)
