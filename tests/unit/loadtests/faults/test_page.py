"""The page of the bench of faults."""

import pytest

from loadtests.faults.__main__ import OF_METHODS, given, kept
from loadtests.faults.page import GOALS, page


def test_the_page_has_all_goals_and_says_what_was_not_measured() -> None:
    figures = {"rss_mb_after_start": 1000.0, "rss_mb_a_minute_later": 1050.0, "ready_s_first": 30.0}
    text = page(figures)
    assert "| memory once all rungs are warm, MB | 1000 | below 1200 | met |" in text
    assert "| 1.05 | at most 1.1 | met |" in text
    assert "| 30.0 | at most 25 | **missed** |" in text
    assert text.count("not measured") == len(GOALS) - 3


def test_figures_of_other_benches_are_kept() -> None:
    name = OF_METHODS[0]
    assert kept({name: 1.5, "ready_s_first": 3.0}) == {name: 1.5}
    assert given([f"{name}=2.5"]) == {name: 2.5}
    with pytest.raises(SystemExit, match="NAME=VALUE"):
        given([name])
