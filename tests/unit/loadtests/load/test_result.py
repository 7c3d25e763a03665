"""A finished run: the cost of its generator, its warning, its JSON and the rates it sustained."""

import json

import pytest

from loadtests.load.records import RequestRecord
from loadtests.load.result import as_json, by_rate, highest_good_rate, read_runs
from tests.support.load_runs import CHATS, RECORDS, load_run


def test_the_figures_include_the_cost_of_the_generator() -> None:
    values = load_run().figures()
    assert values["generator_cpu_us_per_request"] == pytest.approx(250)
    assert values["generator_core_share"] == pytest.approx(0.0008)


def test_a_generator_that_falls_behind_gives_a_warning() -> None:
    assert load_run().warning == ""
    late = [RequestRecord("all", 0.1, at, at + 1, at + 1.1, 200, "late") for at in (0.0, 1.0)]
    assert "the generator fell behind, 1000 ms at p99" in load_run(records=late).warning
    assert "1.3 of 1.0" not in load_run(records=late).warning


def test_a_run_survives_the_round_trip_through_json() -> None:
    text = as_json([load_run()])
    (back,) = read_runs(text)
    assert back.figures() == load_run().figures()
    assert as_json([back]) == text
    assert back.records[-1].kind == "unanswered"
    (fields,) = json.loads(text)["runs"]
    assert fields["figures"]["attainment"] == 3 / 8
    assert fields["by_rung"]["half"] == {"answers": 2, "accuracy": 0.5, "quality": 0.9}
    assert fields["by_promise"]["all"]["offered"] == 8
    assert fields["requests"]["promise"] == ["all"] * 8
    assert fields["requests"]["timings_ms"] == {"queue": [1.5] * 8}


def test_a_run_of_chats_survives_the_round_trip_and_has_groups() -> None:
    run = load_run(records=CHATS)
    text = as_json([run])
    (back,) = read_runs(text)
    assert back.records[0].chat == CHATS[0].chat
    assert as_json([back]) == text
    assert back.figures()["ttft_ms_p50"] == 20.0
    places = run.by_place()
    assert list(places) == ["new picture", "follow-up"]
    assert places["follow-up"]["offered"] == 2 and places["follow-up"]["attainment"] == 0.5
    assert list(run.by_question()) == ["count", "name"]
    assert "ttft_ms_p50" not in load_run().figures() and load_run().by_question() == {}
    (saved,) = json.loads(text)["runs"]
    assert saved["by_question"]["name"]["cached_share"] == 0.25


def test_a_rate_counts_as_good_only_if_all_lower_rates_do() -> None:
    assert highest_good_rate([(10, 1.0), (20, 0.99), (40, 0.98), (80, 0.995)]) == 20
    assert highest_good_rate([(10, 0.5), (20, 1.0)]) is None
    runs = [load_run(), load_run(records=RECORDS[:3], span_s=1.0)]
    assert by_rate(runs) == {"step:4": [(3.0, 1.0), (4.0, 0.375)]}
    assert by_rate(runs[:1]) == {}
    assert json.loads(as_json(runs))["rate_kept"] == {"step:4": 3.0}
