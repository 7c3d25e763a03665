"""The page of the bench of faults."""

from loadtests.faults.__main__ import OF_METHODS, of_methods
from loadtests.faults.page import GOALS, page
from loadtests.report import read


def test_the_page_has_all_goals_and_says_what_was_not_measured() -> None:
    figures = {"rss_mb_after_start": 1000.0, "rss_mb_a_minute_later": 1050.0, "ready_s_first": 30.0}
    text = page(figures)
    assert "| memory once all rungs are warm, MB | 1000 | below 1200 | met |" in text
    assert "| 1.05 | at most 1.1 | met |" in text
    assert "| 30.0 | at most 25 | **missed** |" in text
    assert text.count("not measured") == len(GOALS) - 3


def test_figures_of_other_benches_come_from_their_files() -> None:
    assert of_methods() == {name: read(bench)[name] for name, bench in OF_METHODS.items()}
