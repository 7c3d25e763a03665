"""Pages and JSON files of benches: a page is a function of its JSON file, besides its setup."""

import json
from pathlib import Path

import pytest

from loadtests import report
from loadtests.report import Goal, cell, earlier, goal_table, read, render, table, write


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path / "benchmarks")


def test_a_bench_writes_figures_and_a_page_with_its_setup() -> None:
    page = write("speed", {"rate": 2.5}, "# Speed\n\nText.\n", {"rounds": "3"}, ("numpy", "no-such-package"))
    assert json.loads(page.with_suffix(".json").read_text()) == read("speed") == {"rate": 2.5}
    text = page.read_text()
    assert text.startswith("# Speed\n\nText.\n\n## Setup\n\n| setting | value |\n")
    assert "| rounds | 3 |" in text and "| date | 20" in text and "cores of " in text
    assert "numpy " in text and "no-such-package" not in text


def test_figures_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    assert earlier("chat", tmp_path) == {}
    (tmp_path / "chat.json").write_text(json.dumps({"greedy_equal": 1.0}))
    assert earlier("chat", tmp_path) == {"greedy_equal": 1.0}


def test_rendering_keeps_the_setup_of_the_measurement() -> None:
    page = write("speed", {"rate": 2.5}, "# Speed", {"rounds": "3"})
    page.write_text(page.read_text().replace("| rounds | 3 |", "| rounds | 3 |\n| machine | an old one |"))
    setup = page.read_text().partition("## Setup")[2]
    assert render("speed", "# Another title") == page
    assert page.read_text() == f"# Another title\n\n## Setup{setup}"
    assert read("speed") == {"rate": 2.5}


@pytest.mark.parametrize(
    ("goal", "row"),
    [
        (Goal("rate", "rate", "at least", 2), "| rate | 2.5 | at least 2 | met |"),
        (Goal("rate", "rate", "at least", 3, "{:.2f}"), "| rate | 2.50 | at least 3 | **missed** |"),
        (Goal("rate", "rate", "at most", 2.5, "{:g}", "{:.1f}"), "| rate | 2.5 | at most 2.5 | met |"),
        (Goal("rate", "rate", "below", 2.5), "| rate | 2.5 | below 2.5 | **missed** |"),
        (
            Goal("share", "share", "at least", 0.5, "{:.0%}", "{:.0%}"),
            "| share | - | at least 50% | not measured |",
        ),
    ],
)
def test_a_goal_is_met_missed_or_not_measured(goal: Goal, row: str) -> None:
    assert goal_table([goal], {"rate": 2.5}).splitlines()[2] == row


def test_tables_have_a_cell_for_a_missing_figure() -> None:
    assert table(["a", "b"], [["1", cell({}, "b", "{:g}")]]) == "| a | b |\n| --- | --- |\n| 1 | - |"
    assert cell({"b": 0.5}, "b", "{:.0%}") == "50%"
