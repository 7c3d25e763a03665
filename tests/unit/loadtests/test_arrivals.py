"""Arrival schedules: rates, burstiness, traces, and invalid arguments."""

from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import SetupError
from loadtests.arrivals import PERIOD_S, schedule

ALL = ("constant", "poisson", "gamma:1", "gamma:2", "gamma:4", "step:4", "ramp:4", "onoff:4", "day:4")


@pytest.mark.parametrize("shape", ALL)
def test_times_are_sorted_and_within_bounds_and_depend_on_the_seed_alone(shape: str) -> None:
    times = schedule(shape, 50.0, 10.0, 3)
    assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 10
    assert times.dtype == np.float64
    assert np.array_equal(times, schedule(shape, 50.0, 10.0, 3))


@pytest.mark.parametrize("shape", ALL[1:])
def test_another_seed_gives_another_schedule(shape: str) -> None:
    first, second = schedule(shape, 50.0, 10.0, 0), schedule(shape, 50.0, 10.0, 1)
    assert len(first) != len(second) or not np.array_equal(first, second)


@pytest.mark.parametrize("shape", ["constant", "poisson", "gamma:2", "onoff:4"])
def test_the_mean_rate_is_the_rate(shape: str) -> None:
    assert len(schedule(shape, 200.0, 200.0, 0)) / 200 == pytest.approx(200, rel=0.03)


def test_constant_is_evenly_spaced() -> None:
    assert schedule("constant", 4.0, 1.0, 0).tolist() == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("shape", "cv"), [("poisson", 1.0), ("gamma:1", 1.0), ("gamma:2", 2.0), ("gamma:4", 4.0)]
)
def test_gaps_have_the_coefficient_of_variation(shape: str, cv: float) -> None:
    gaps = np.diff(schedule(shape, 100.0, 1000.0, 0))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_a_step_is_in_the_middle_third() -> None:
    times = schedule("step:4", 100.0, 30.0, 0)
    counts = np.histogram(times, [0, 10, 20, 30])[0] / 1000
    assert counts == pytest.approx([1, 4, 1], rel=0.1)


def test_a_ramp_grows_from_the_rate_to_its_multiple() -> None:
    counts = np.histogram(schedule("ramp:4", 100.0, 60.0, 0), [0, 1, 29, 31, 59, 60])[0]
    assert counts[[0, 2, 4]] / [1, 2, 1] == pytest.approx([102.5, 250, 397.5], rel=0.15)


def test_bursts_have_a_multiple_of_the_rate_and_no_requests_between_them() -> None:
    times = schedule("onoff:4", 100.0, 40.0, 0) % PERIOD_S
    assert times.max() < PERIOD_S / 4
    assert len(times) / 10 == pytest.approx(400, rel=0.05)


def test_a_trace_is_replayed_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("0.5\n0.25\n\n7\n")
    assert schedule(f"trace:{file}", 1.0, 1.0, 0).tolist() == [0.25, 0.5, 7.0]


@pytest.mark.parametrize(
    "text",
    [
        "0.25\n0.5\n7\n",
        "arrival,tokens\n0.25,10\n0.5,\n7,3\n",
        "time\n1700000000.25\n1700000000.5\n1700000007\n",
        "TIMESTAMP,x\n2023-11-16 18:17:03.25,1\n2023-11-16 18:17:03.5000000,1\n2023-11-16T18:17:10Z,1\n",
    ],
)
def test_published_trace_formats_are_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    times = schedule(f"trace:{file}", 1.0, 1.0, 0)
    assert (times - times[0]).tolist() == pytest.approx([0, 0.25, 6.75], abs=1e-6)
    assert times[0] in (0, 0.25)


@pytest.mark.parametrize("text", ["0.1\nsoon\n", "-1\n", "1\nnan\n", "time\nwhen\n", "1\ninf\n"])
def test_a_trace_without_valid_times_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(SetupError, match="trace"):
        schedule(f"trace:{file}", 1.0, 1.0, 0)


@pytest.mark.parametrize(
    "shape",
    ["", "sawtooth", "poisson:2", "gamma", "gamma:0", "step:x", "ramp:0.5", "onoff:inf", "trace:nowhere"],
)
def test_an_invalid_shape_is_an_error_of_one_sentence(shape: str) -> None:
    with pytest.raises(SetupError) as caught:
        schedule(shape, 1.0, 1.0, 0)
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_the_rate_and_the_duration_must_be_positive(rate: float, seconds: float) -> None:
    with pytest.raises(SetupError, match="above 0"):
        schedule("poisson", rate, seconds, 0)
