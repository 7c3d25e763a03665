"""Figures and windows of a run."""

import math

import pytest

from loadtests.load.records import END_KINDS, count_kinds
from loadtests.load.score import figures, windows
from tests.support.load_runs import RECORDS, load_record


def test_attainment_is_over_all_offered_and_accuracy_over_answers_in_time() -> None:
    values = figures(RECORDS, 2.0)
    assert values["attainment"] == 3 / 8
    assert values["accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert (values["accuracy_answered"], values["correct_in_time"]) == (3 / 4, 2 / 8)
    assert values["quality"] == pytest.approx(0.95)
    assert [values[kind.replace(" ", "_")] for kind in END_KINDS] == [3, 1, 1, 1, 1, 1]
    assert sum(count_kinds(RECORDS).values()) == values["offered"] == len(RECORDS)


def test_rates_are_over_the_schedule_or_over_the_longer_real_time() -> None:
    values = figures(RECORDS, 2.0)
    assert (values["offered_per_s"], values["sent_per_s"], values["answered_per_s"]) == (4, 4, 2)
    slow = [load_record(0.0, "in time", 4.0, "full", True), load_record(1.0, "in time", 3.0, "full", True)]
    assert figures(slow, 2.0)["answered_per_s"] == 0.5


def test_latency_counts_from_the_scheduled_time_and_lag_is_separate() -> None:
    values = figures(RECORDS, 2.0)
    assert values["latency_ms_p50"] == pytest.approx(70)
    assert values["lag_ms_p50"] == values["lag_ms_max"] == pytest.approx(2)


def test_a_figure_without_data_is_none() -> None:
    values = figures([load_record(0.0, "refused")], 1.0)
    assert values["attainment"] == 0
    assert values["accuracy"] is values["quality"] is values["latency_ms_p50"] is None


def test_windows_divide_a_run_by_scheduled_time() -> None:
    first, second, third, last = windows(RECORDS, 0.25)
    assert [w.start for w in (first, second, third, last)] == [0, 0.25, 1.0, 1.75]
    assert (first.offered, first.attainment, first.rungs) == (3, 1.0, {"half": 1, "full": 2})
    assert first.accuracy == pytest.approx(2 / 3)
    assert (second.attainment, second.kinds["late"], second.quality) == (0, 1, 0.9)
    assert third.kinds == {**dict.fromkeys(END_KINDS, 0), "refused": 1, "expired": 1, "error": 1}
    assert math.isnan(last.accuracy)
