"""Outcomes, figures, windows, JSON and the page."""

import json
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from loadtests.load.answers import foveate
from loadtests.load.page import page
from loadtests.load.records import KINDS, Exchange, Kind, Record, counted, judge
from loadtests.load.result import Cost, Run, as_json, by_rate, rate_kept, read_runs
from loadtests.load.score import figures, windows

FOX = (
    b'{"predictions": [{"label": "fox"}], "compute": {"rung": "half", "quality": 0.9},'
    b' "timings_ms": {"queue": 1}}'
)


def exchange(status: int, ended: float = 1.1, body: bytes = b"", problem: str = "") -> Exchange:
    return Exchange(0, 1.0, 1.02, ended, status, body, problem)


@pytest.mark.parametrize(
    ("seen", "kind", "problem"),
    [
        (exchange(200, 1.2, FOX), "in time", ""),
        (exchange(200, 1.2001, FOX), "late", ""),
        (exchange(200, 1.1, b"<html>"), "error", "an answer that the parser cannot read"),
        (exchange(200, 1.1, b"[]"), "error", "an answer that the parser cannot read"),
        (exchange(200, 1.1, b'{"predictions": []}'), "error", "an answer that the parser cannot read"),
        (exchange(429), "refused", ""),
        (exchange(503), "refused", ""),
        (exchange(504), "expired", ""),
        (exchange(408), "expired", ""),
        (exchange(500), "error", "status 500"),
        (exchange(422), "error", "status 422"),
        (exchange(0, 1.1, problem="the server hung up"), "error", "the server hung up"),
        (exchange(0, math.nan, problem="no answer within 10 s"), "unanswered", "no answer within 10 s"),
    ],
)
def test_every_exchange_has_one_outcome(seen: Exchange, kind: Kind, problem: str) -> None:
    found = judge(seen, "all", 0.2, "fox", foveate)
    assert (found.kind, found.problem) == (kind, problem)
    assert found.correct is (True if kind in ("in time", "late") else None)


def test_an_answer_is_judged_by_the_pictures_label() -> None:
    found = judge(exchange(200, body=FOX), "all", 0.2, "cat", foveate)
    assert (found.correct, found.rung, found.quality, found.timings_ms) == (False, "half", 0.9, {"queue": 1})


def record(at: float, kind: Kind, took: float = 0.05, rung: str = "", correct: bool | None = None) -> Record:
    quality = {"": None, "half": 0.9, "full": 1.0}[rung]
    status = {"in time": 200, "late": 200, "refused": 429, "expired": 504, "error": 500, "unanswered": 0}[
        kind
    ]
    ended = math.nan if kind == "unanswered" else at + took
    problem = "status 500" if kind == "error" else ""
    return Record(
        "all", 0.1, at, at + 0.002, ended, status, kind, rung, quality, correct, {"queue": 1.5}, problem
    )


RECORDS = (
    record(0.0, "in time", 0.04, "full", True),
    record(0.1, "in time", 0.06, "full", True),
    record(0.2, "in time", 0.08, "half", False),
    record(0.3, "late", 0.3, "half", True),
    record(1.0, "refused"),
    record(1.1, "expired"),
    record(1.2, "error"),
    record(1.9, "unanswered"),
)


def test_attainment_is_over_all_offered_and_accuracy_over_what_came_in_time() -> None:
    found = figures(RECORDS, 2.0)
    assert found["attainment"] == 3 / 8
    assert found["accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert (found["accuracy_answered"], found["correct_in_time"]) == (3 / 4, 2 / 8)
    assert found["quality"] == pytest.approx(0.95)
    assert [found[kind.replace(" ", "_")] for kind in KINDS] == [3, 1, 1, 1, 1, 1]
    assert sum(counted(RECORDS).values()) == found["offered"] == len(RECORDS)


def test_rates_are_over_the_schedule_and_over_what_it_really_took() -> None:
    found = figures(RECORDS, 2.0)
    assert (found["offered_per_s"], found["sent_per_s"], found["answered_per_s"]) == (4, 4, 2)
    slow = [record(0.0, "in time", 4.0, "full", True), record(1.0, "in time", 3.0, "full", True)]
    assert figures(slow, 2.0)["answered_per_s"] == 0.5


def test_latency_counts_from_the_scheduled_time_and_lag_is_told_apart() -> None:
    found = figures(RECORDS, 2.0)
    assert found["latency_ms_p50"] == pytest.approx(70)
    assert found["lag_ms_p50"] == found["lag_ms_max"] == pytest.approx(2)


def test_what_has_nothing_to_say_says_nothing() -> None:
    found = figures([record(0.0, "refused")], 1.0)
    assert found["attainment"] == 0
    assert found["accuracy"] is found["quality"] is found["latency_ms_p50"] is None


def test_windows_cut_a_run_by_scheduled_time() -> None:
    first, second, third, last = windows(RECORDS, 0.25)
    assert [w.start for w in (first, second, third, last)] == [0, 0.25, 1.0, 1.75]
    assert (first.offered, first.attainment, first.rungs) == (3, 1.0, {"half": 1, "full": 2})
    assert first.accuracy == pytest.approx(2 / 3)
    assert (second.attainment, second.kinds["late"], second.quality) == (0, 1, 0.9)
    assert third.kinds == {**dict.fromkeys(KINDS, 0), "refused": 1, "expired": 1, "error": 1}
    assert math.isnan(last.accuracy)


def run(name: str = "a <run>", records: Sequence[Record] = RECORDS, span_s: float = 2.0) -> Run:
    settings = {"name": "", "shape": "step:4", "rate": 4.0}
    cost = Cost(0.002, 2.5, 3, len(records))
    return Run(
        name, "python -m loadtests.load --rate 4", "2026-01-02", "a machine", settings, span_s, cost, records
    )


def test_the_generators_cost_is_stated() -> None:
    found = run().figures()
    assert found["generator_cpu_us_per_request"] == pytest.approx(250)
    assert found["generator_core_share"] == pytest.approx(0.0008)


def test_a_generator_that_falls_behind_is_said_so() -> None:
    assert run().doubt == ""
    late = [Record("all", 0.1, at, at + 1, at + 1.1, 200, "late") for at in (0.0, 1.0)]
    assert "the generator fell behind, 1000 ms at p99" in run(records=late).doubt
    assert "1.3 of 1.0" not in run(records=late).doubt


def test_json_gives_the_run_back() -> None:
    text = as_json([run()])
    (back,) = read_runs(text)
    assert back.figures() == run().figures()
    assert as_json([back]) == text
    assert back.records[-1].kind == "unanswered"
    (said,) = json.loads(text)["runs"]
    assert said["figures"]["attainment"] == 3 / 8
    assert said["by_rung"]["half"] == {"answers": 2, "accuracy": 0.5, "quality": 0.9}
    assert said["requests"]["timings_ms"] == {"queue": [1.5] * 8}


def test_a_rate_is_kept_where_all_below_it_are_too() -> None:
    assert rate_kept([(10, 1.0), (20, 0.99), (40, 0.98), (80, 0.995)]) == 20
    assert rate_kept([(10, 0.5), (20, 1.0)]) is None
    runs = [run(), run(records=RECORDS[:3], span_s=1.0)]
    assert by_rate(runs) == {"step:4": [(3.0, 1.0), (4.0, 0.375)]}
    assert by_rate(runs[:1]) == {}
    assert json.loads(as_json(runs))["rate_kept"] == {"step:4": 3.0}


def test_the_page_stands_alone_and_says_what_was_run() -> None:
    runs = [run(), run("second", RECORDS[:4], 1.0)]
    html = page(runs)
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\((?!#)|@import|<script", html)
    for text in (
        "a &lt;run&gt;",
        "python -m loadtests.load --rate 4",
        "2026-01-02",
        "a machine",
        "37.50%",
        "66.67%",
    ):
        assert text in html, text
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) == 5
    for picture in pictures:
        ElementTree.fromstring(picture)  # noqa: S314  # our own
    assert "Highest rate run that attained 99%, as all below it did: step:4: none." in html


def test_one_run_draws_no_line_over_rates() -> None:
    assert len(re.findall("<svg", page([run()]))) == 3


def test_a_run_that_nobody_answered_has_a_page_too() -> None:
    assert "unanswered" in page([run(records=[record(0.0, "unanswered"), record(1.0, "refused")])])
