"""The search for the highest rate that reaches an attainment."""

import math

import pytest

from loadtests.load.capacity import highest_rate


class CapacityServer:
    """Attains 1 up to its capacity, and the share that it can serve above it."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.measured = capacity, list[float]()

    def __call__(self, rate: float) -> float:
        self.measured.append(rate)
        return min(1.0, self.capacity / rate)


@pytest.mark.parametrize("capacity", [0.3, 7.0, 50.0, 51.0, 1234.5])
@pytest.mark.parametrize("start", [10.0, 50.0])
def test_the_result_is_just_below_the_rate_that_misses_the_goal(capacity: float, start: float) -> None:
    server = CapacityServer(capacity)
    edge = capacity / 0.99
    rate = highest_rate(server, start)
    assert rate <= edge < rate * 1.05
    assert rate in server.measured
    assert len(server.measured) == len(set(server.measured)) <= 2 + abs(math.log2(edge / start)) + 6


def test_a_lower_goal_allows_a_higher_rate() -> None:
    assert 190 < highest_rate(CapacityServer(100), 50, goal=0.5) <= 200


def test_a_server_that_never_reaches_the_goal_has_no_rate() -> None:
    server = CapacityServer(0.0)
    assert highest_rate(server, 64) == 0
    assert min(server.measured) == 64 / 2**12


def test_a_server_that_always_reaches_the_goal_ends_the_search() -> None:
    assert highest_rate(lambda _: 1.0, 1.0) == 2.0**12
