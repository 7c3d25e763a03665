"""The measurement of a scheduling decision."""

from loadtests.simulate.__main__ import read_rungs
from loadtests.slo import decisions


def test_choosing_and_admitting_are_timed() -> None:
    figures = decisions.cost_ms(read_rungs("vit-t"))
    assert set(figures) == {"decision_ms_at_1000", "admission_ms_at_1000"}
    assert all(value > 0 for value in figures.values())
