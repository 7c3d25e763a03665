"""Recovery from a step, and the result of a search for the highest rate."""

import math

import pytest

from loadtests.slo.live import RateSearch, recovery
from tests.support.slo_runs import slo_record, slo_run, step_run


@pytest.mark.parametrize(
    ("missed_until", "degraded_until", "recovery_s", "quality_back_s"),
    [(0, 0, 0, 0), (2.2, 4.0, 0.25, 0), (2.6, 4.2, 0.75, 0.25), (4.0, 5.0, 2, 1), (0, 6.0, 0, 2)],
)
def test_recovery_ends_with_the_last_window_that_missed_the_goal(
    missed_until: float, degraded_until: float, recovery_s: float, quality_back_s: float
) -> None:
    result = recovery(step_run(missed_until, degraded_until))
    assert result.recovery_s == pytest.approx(recovery_s)
    assert result.quality_back_s == pytest.approx(quality_back_s)


def test_the_accuracy_of_a_search_is_that_of_its_last_run_at_the_highest_rate() -> None:
    slow = slo_run([slo_record(0.0), slo_record(0.1)], 1.0)
    fast = slo_run([slo_record(n / 4) for n in range(4)], 1.0)
    assert RateSearch(2.0, [slow, fast]).accuracy == 1
    assert math.isnan(RateSearch(0.0, [slow, fast]).accuracy)
