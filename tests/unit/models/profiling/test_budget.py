"""The time budget: its text, and the time that is left of it."""

import math

import pytest

from foveate.core.errors import SetupError
from foveate.models.profiling.budget import TimeBudget, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("0.5m", 30)]
)
def test_a_budget_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds
    assert parse_budget(None) is None


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "0s", "-5m", "10min", "1d"])
def test_other_texts_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SetupError, match=r"a budget is a time such as 90s, 10m or 1h30m, not"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["99999999999h", "168h1s", "9" * 400 + "s"])
def test_a_budget_is_bounded(text: str) -> None:
    assert parse_budget("168h") == 7 * 24 * 3600
    with pytest.raises(SetupError, match=r"a budget is at most 168h, which is 7 days, not ") as refused:
        parse_budget(text)
    assert len(refused.value.detail) < 120


def test_the_time_of_earlier_attempts_counts() -> None:
    now = 100.0
    budget = TimeBudget(60, 20, lambda: now)
    assert (budget.spent_s, budget.left_s(), budget.left_s(0.5)) == (20, 40, 10)
    now = 115.0
    assert (budget.ended(0.5), budget.ended()) == (True, False)
    now = 200.0
    assert budget.ended() and budget.left_s() == 0
    unlimited = TimeBudget(None)
    assert unlimited.left_s() == math.inf and not unlimited.ended()
