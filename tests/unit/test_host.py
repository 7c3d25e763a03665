"""What else the cores do: counted while it waits, remembered for a while."""

import time

import pytest

from foveate.engine.host import DOUBT, Crowd, Host


def test_what_is_being_made_ready_is_pending_until_it_is_left() -> None:
    host = Host(lanes=2)
    host.made(0.01, 0.004)
    with host, host:
        assert host.crowd.pending_s == pytest.approx(0.008)
        assert host.wait_s == pytest.approx(0.01 + DOUBT * 0.01)
    assert host.crowd.pending_s == 0
    assert host.wait_s == pytest.approx(0.01)


def test_one_that_fails_is_left_too() -> None:
    host = Host()
    with pytest.raises(ValueError, match="damaged"), host:
        raise ValueError("damaged")
    assert host.pending == 0


def test_the_first_ones_count_in_full_and_later_ones_little() -> None:
    host = Host()
    for _ in range(3):
        host.made(0.02, 0.01)
    assert host.wait_s == pytest.approx(0.02)
    for _ in range(100):
        host.made(0.02, 0.01)
    host.made(2.0, 1.0)
    assert host.wait_s < 0.15


def test_work_of_late_is_remembered_for_a_while() -> None:
    host = Host(lanes=2)
    assert host.crowd.making == 0
    for _ in range(10):
        host.made(0.01, 0.01)
    assert 0.2 < host.crowd.making <= 0.5
    time.sleep(0.4)
    assert host.crowd.making < 0.1


def test_no_more_cores_are_taken_than_there_are_lanes() -> None:
    assert Crowd(0.1, 0.5, 0.0, 2).cores(1.0) == pytest.approx(0.6)
    assert Crowd(0.1, 0.5, 9.0, 2).cores(1.0) == pytest.approx(2.1)
    assert Crowd(0.1, 0.2, 0.5, 2).cores(1.0) == pytest.approx(0.6)
