"""What else the cores do: counted while it waits, remembered for a while."""

import time

import pytest

from foveate.estimation.host_load import DOUBT, CpuLoad, HostLoadMonitor


def test_what_is_being_made_ready_is_pending_until_it_is_left() -> None:
    host = HostLoadMonitor(lanes=2)
    work = host.work("pictures", "a")
    work.done(0.01, 0.004)
    with work, work:
        assert host.crowd.pending_s == pytest.approx(0.008)
        assert work.wait_s == pytest.approx(0.01 + DOUBT * 0.01)
    assert host.crowd.pending_s == 0
    assert work.wait_s == pytest.approx(0.01)


def test_what_waits_in_another_pool_is_waited_for_by_nobody_and_runs_on_the_same_cores() -> None:
    host = HostLoadMonitor(lanes=2)
    pictures, masks, clips = host.work("pictures", "a"), host.work("pictures", "b"), host.work("clips", "c")
    pictures.done(0.01, 0.01)
    clips.done(0.1, 0.1)
    with clips, clips:
        assert pictures.wait_s == pytest.approx(0.01)
        assert host.crowd.pending_s == pytest.approx(0.2)
        assert (host.coming("a"), host.coming("c"), host.pending) == (0, 2, 2)
    with pictures:
        assert masks.wait_s == pytest.approx(DOUBT * 0.005)


def test_one_that_fails_is_left_too() -> None:
    host = HostLoadMonitor()
    with pytest.raises(ValueError, match="damaged"), host.work("pictures", "a"):
        raise ValueError("damaged")
    assert host.pending == 0


def test_the_first_ones_count_in_full_and_later_ones_little() -> None:
    work = HostLoadMonitor().work("pictures", "a")
    for _ in range(3):
        work.done(0.02, 0.01)
    assert work.wait_s == pytest.approx(0.02)
    for _ in range(100):
        work.done(0.02, 0.01)
    work.done(2.0, 1.0)
    assert work.wait_s < 0.15


def test_work_of_late_is_remembered_for_a_while() -> None:
    host = HostLoadMonitor(lanes=2)
    assert host.crowd.making == 0
    for _ in range(10):
        host.work("pictures", "a").done(0.01, 0.01)
    assert 0.2 < host.crowd.making <= 0.5
    time.sleep(0.4)
    assert host.crowd.making < 0.1


def test_no_more_cores_are_taken_than_there_are_lanes() -> None:
    assert CpuLoad(0.1, 0.5, 0.0, 2).cores(1.0) == pytest.approx(0.6)
    assert CpuLoad(0.1, 0.5, 9.0, 2).cores(1.0) == pytest.approx(2.1)
    assert CpuLoad(0.1, 0.2, 0.5, 2).cores(1.0) == pytest.approx(0.6)
