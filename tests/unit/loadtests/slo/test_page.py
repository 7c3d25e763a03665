"""The page of the bench on deadlines."""

from loadtests.report import read
from loadtests.slo.page import GOALS, page


def test_the_page_says_which_goals_are_met_and_missed() -> None:
    text = page({"rate_ratio_best_peer": 3.25, "sim_real_gap_points": 3.8})
    assert "| highest rate, relative to the best other server | 3.25 | at least 3 | met |" in text
    assert "points | 3.80 | at most 3 | **missed** |" in text
    assert text.count("| not measured |") == len(GOALS) - 2


def test_the_page_has_a_row_for_each_measured_server() -> None:
    text = page({"rate_litserve": 41.5, "accuracy_at_rate_litserve": 0.99, "rate_foveate": 100.0})
    assert "| litserve | 41.50 | 99.0% |" in text
    assert "| Foveate | 100.00 | - |" in text
    assert "mosec" not in text


def test_the_committed_figures_fill_the_whole_page() -> None:
    text = page(read("slo"))
    assert "| - " not in text and "not measured" not in text
