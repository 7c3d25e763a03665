"""The figures of photographs from a profile."""

from dataclasses import replace

import pytest

from foveate.core.profile import Measurement, MeasurementEnvironment, Profile, ProfilingSet, mark_rungs
from loadtests.reach import photos


def measured(plan: str, quality: float, seconds: float | None) -> Measurement:
    latency = {} if seconds is None else {1: 1.0, 8: 8 * seconds}
    return Measurement(plan, quality, None, seconds or 1.0, 16, latency)


def profile(*measurements: Measurement) -> Profile:
    setting = MeasurementEnvironment("a CPU", 2, "fp32", "2.13", "3.11", "0.1", "2026-11-30")
    data = ProfilingSet("photographs", 100, labelled=False)
    return Profile("m", "0" * 64, data, 0, setting, mark_rungs(measurements))


def test_figures_are_shares_of_the_seconds_of_full() -> None:
    measurements = [
        measured("m@64", 0.8, 0.001), measured("m@96", 0.992, 0.002), measured("full", 1.0, 0.006),
    ]  # fmt: skip
    assert photos.figures(profile(*measurements)) == {
        "photos_top1_agreement_cheapest": 0.8,
        "photos_ladder_span": 6.0,
        "photos_speedup_at_1pt_agreement": 3.0,
    }


def test_without_a_rung_within_a_point_the_speed_up_is_that_of_full() -> None:
    ladder = profile(measured("m@64", 0.5, 0.001), measured("full", 1.0, 0.006))
    assert photos.figures(ladder)["photos_speedup_at_1pt_agreement"] == 1.0


def test_a_profile_without_latencies_has_no_figures() -> None:
    timed = profile(measured("full", 1.0, 0.006))
    untimed = replace(timed, measurements=tuple(replace(m, latency_s={}) for m in timed.measurements))
    with pytest.raises(ValueError, match="no latencies"):
        photos.figures(untimed)
