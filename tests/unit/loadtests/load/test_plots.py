"""The plots of the report: which lines and stacks they draw, and the colours of rungs."""

import re
from collections.abc import Iterator

import matplotlib
import pytest

from loadtests.load import plots
from tests.support.load_runs import RECORDS, load_record, load_run


@pytest.fixture(autouse=True)
def _text_stays_text() -> Iterator[None]:
    with matplotlib.rc_context(plots.STYLE):
        yield


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_rungs_have_distinct_colours_and_the_higher_quality_is_darker() -> None:
    colours = plots.rung_colours([load_run()])
    assert list(colours) == ["half", "full"]
    half, full = (sum(bytes.fromhex(colours[name][1:])) for name in ("half", "full"))
    assert full < half


def test_the_plot_over_time_names_the_end_kinds_and_rungs_of_the_run() -> None:
    run = load_run(records=RECORDS[:4])
    shown = texts(plots.over_time(run, plots.rung_colours([run])))
    assert {"in time", "late", "half", "full", "attainment"} <= set(shown)
    assert "refused" not in shown


def test_the_latency_plot_marks_the_deadline() -> None:
    assert "100 ms" in texts(plots.latency([load_run()]))


def test_a_latency_plot_without_answers_has_no_legend() -> None:
    run = load_run("nothing answered", [load_record(0.0, "unanswered")])
    assert "nothing answered" not in texts(plots.latency([run]))


def test_the_plot_over_rates_has_a_line_for_each_series() -> None:
    lines = {"poisson": [(10.0, 1.0), (20.0, 0.9)], "step:4": [(10.0, 0.8)]}
    assert {"poisson", "step:4"} <= set(texts(plots.capacity(lines)))
