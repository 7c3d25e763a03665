"""The highest rate at which a server reaches an attainment, by bisection on a log scale."""

import math
from collections.abc import Callable

MAX_DOUBLINGS = 12


def highest_rate(
    measure: Callable[[float], float], start: float, goal: float = 0.99, precision: float = 0.05
) -> float:
    """The highest measured rate that reaches the goal, in the unit of `start`; 0 if start / 2^12 fails too.

    `measure` runs a short test at a rate and returns its attainment. The search doubles or halves the rate
    from `start` until one rate passes and one fails. Then it bisects that interval on a log scale until the
    ratio of its ends is at most 1 + `precision`. Each rate is measured once, so the result is as reliable as
    a single run.
    """
    good, bad = _bracket(measure, start, goal)
    while good > 0 and bad < math.inf and bad / good > 1 + precision:
        middle = math.sqrt(good * bad)
        if measure(middle) >= goal:
            good = middle
        else:
            bad = middle
    return good


def _bracket(measure: Callable[[float], float], start: float, goal: float) -> tuple[float, float]:
    """A rate that passes and a rate that fails, a factor of 2 apart; (0, rate) or (rate, inf) if the search
    ends without one of them."""
    passes = measure(start) >= goal
    rate = start
    for _ in range(MAX_DOUBLINGS):
        next_rate = rate * 2 if passes else rate / 2
        if (measure(next_rate) >= goal) != passes:
            return (rate, next_rate) if passes else (next_rate, rate)
        rate = next_rate
    return (rate, math.inf) if passes else (0.0, rate)
