"""What policies share: the order of requests, the rungs to choose from, refusals."""

import math
from dataclasses import replace
from functools import partial

import pytest

from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.scheduling.policy import (
    Candidate,
    Refusal,
    last_of_lowest_priority,
    min_rung,
    pareto_rungs,
    priority_boost_s,
    virtual_deadline,
)

FULL = Plan("m", 32)


def rung(name: str, quality: float | None) -> Rung:
    return Rung(replace(FULL, reducer=name) if name else FULL, 1.0, 5, quality)


def test_a_priority_is_a_bounded_boost() -> None:
    order = partial(virtual_deadline, default_deadline_s=1.0, priority_boost_s=2.0)
    old = order(Objective(), 0.0)
    assert order(Objective(priority=1), 1.5) < old
    assert order(Objective(priority=1), 2.5) > old
    assert order(Objective(deadline=0.5), 0.0) < old < order(Objective(priority=-1), 0.0)


def test_only_rungs_that_are_better_than_all_cheaper_ones_can_be_chosen() -> None:
    low, worse, high = rung("evit:0.3", 0.8), rung("evit:0.4", 0.7), rung("evit:0.5", 0.9)
    unmeasured, full = rung("evit:0.6", None), rung("", 0.85)
    card = ModelCard("m", "", FULL, (), 0, None, (low, worse, high, unmeasured, full))
    assert pareto_rungs(card) == (low, high, full), "full always stays"


def test_equal_priorities_are_equal_whatever_the_deadline() -> None:
    deadlines = [70_000.123 + 0.0137 * number for number in range(50)]
    entries = [Candidate(deadline - 3.0, deadline, 0, None, "") for deadline in deadlines]
    assert {priority_boost_s(entry) for entry in entries} == {3.0}
    assert all(last_of_lowest_priority(entry, entries) is None for entry in entries)
    low = Candidate(70_000.2, 70_000.2, 0, None, "")
    assert last_of_lowest_priority(entries[0], [low, *entries]) is low
    assert last_of_lowest_priority(Candidate(70_000.0, math.inf, 0, None, ""), [low]) is None
    never = Candidate(70_000.0, math.inf, 0, None, "")
    assert last_of_lowest_priority(entries[0], [never]) is None


@pytest.mark.parametrize(("min_quality", "index"), [(0.0, 0), (0.8, 0), (0.81, 1), (0.95, 2), (1.0, 2)])
def test_the_minimum_quality_selects_the_cheapest_rung_that_meets_it(min_quality: float, index: int) -> None:
    rungs = (rung("evit:0.3", 0.8), rung("evit:0.5", 0.9), rung("", 0.94))
    assert min_rung(rungs, min_quality) == index


def test_a_refusal_names_the_times_and_carries_the_wait() -> None:
    refusal = Refusal(Candidate(10.5, 10.5, 0, None, ""), 0.75, 0.125)
    error = refusal.error(10.0)
    assert error.retry_after_s == 0.75
    for seconds in ("0.500 s", "0.750 s", "0.125 s"):
        assert seconds in error.detail
    assert math.isclose(refusal.service_s, 0.125)
