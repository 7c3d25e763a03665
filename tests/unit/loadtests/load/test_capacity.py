"""The search for the highest rate at which a promise is kept."""

import math

import pytest

from loadtests.load.capacity import highest_rate


class Server:
    """Attains everything up to its capacity, and what it can get done of what is offered above."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.asked = capacity, list[float]()

    def __call__(self, rate: float) -> float:
        self.asked.append(rate)
        return min(1.0, self.capacity / rate)


@pytest.mark.parametrize("capacity", [0.3, 7.0, 50.0, 51.0, 1234.5])
@pytest.mark.parametrize("start", [10.0, 50.0])
def test_it_ends_just_below_the_rate_at_which_the_goal_is_missed(capacity: float, start: float) -> None:
    server = Server(capacity)
    edge = capacity / 0.99
    found = highest_rate(server, start)
    assert found <= edge < found * 1.05
    assert found in server.asked
    assert len(server.asked) == len(set(server.asked)) <= 2 + abs(math.log2(edge / start)) + 6


def test_a_lower_goal_allows_more() -> None:
    assert 190 < highest_rate(Server(100), 50, goal=0.5) <= 200


def test_a_server_that_never_keeps_it_has_no_rate() -> None:
    server = Server(0.0)
    assert highest_rate(server, 64) == 0
    assert min(server.asked) == 64 / 2**12


def test_one_that_always_does_ends_the_search_too() -> None:
    assert highest_rate(lambda _: 1.0, 1.0) == 2.0**12
