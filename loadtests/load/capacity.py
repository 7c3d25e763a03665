"""The highest rate a server keeps its promise at, by bisection on a log scale."""

import math
from collections.abc import Callable

MOST_DOUBLINGS = 12


def highest_rate(
    measure: Callable[[float], float], start: float, goal: float = 0.99, precision: float = 0.05
) -> float:
    """The highest rate measured to reach the goal, in the unit of `start`.

    `measure` runs a short test at a rate and gives its attainment. From `start` the rate is doubled or
    halved until goal and failure enclose the answer, and then the enclosing is halved on a log scale
    until its ends are within `precision` of each other. 0 where even start / 2^12 fails. Each rate is
    measured once, so a result is as sure as a single run.
    """
    good, bad = _enclose(measure, start, goal)
    while good > 0 and bad < math.inf and bad / good > 1 + precision:
        middle = math.sqrt(good * bad)
        if measure(middle) >= goal:
            good = middle
        else:
            bad = middle
    return good


def _enclose(measure: Callable[[float], float], start: float, goal: float) -> tuple[float, float]:
    """A rate that reaches the goal and one that does not, a factor of 2 apart; (0, ...) or (..., inf)
    where there is none within reach."""
    passes = measure(start) >= goal
    rate = start
    for _ in range(MOST_DOUBLINGS):
        following = rate * 2 if passes else rate / 2
        if (measure(following) >= goal) != passes:
            return (rate, following) if passes else (following, rate)
        rate = following
    return (rate, math.inf) if passes else (0.0, rate)
