"""The CPU load of decoding and encoding: pending tasks, and recent ones that are forgotten after a while."""

import time

import pytest

from foveate.estimation.host_load import LOOP_SAMPLE_S, WAIT_SAFETY_FACTOR, CpuLoad, HostLoadMonitor


def test_a_task_is_pending_inside_its_context() -> None:
    monitor = HostLoadMonitor(threads=2)
    timer = monitor.timer("images", "a")
    timer.record(0.01, 0.004)
    with timer, timer:
        assert monitor.load.pending_cpu_s == pytest.approx(0.008)
        assert timer.wait_s == pytest.approx(0.01 + WAIT_SAFETY_FACTOR * 0.01)
    assert monitor.load.pending_cpu_s == 0
    assert timer.wait_s == pytest.approx(0.01)


def test_tasks_of_another_pool_do_not_delay_a_task_but_load_the_same_cores() -> None:
    monitor = HostLoadMonitor(threads=2)
    images, masks, videos = (
        monitor.timer("images", "a"),
        monitor.timer("images", "b"),
        monitor.timer("videos", "c"),
    )
    images.record(0.01, 0.01)
    videos.record(0.1, 0.1)
    with videos, videos:
        assert images.wait_s == pytest.approx(0.01)
        assert monitor.load.pending_cpu_s == pytest.approx(0.2)
        assert (monitor.pending_for("a"), monitor.pending_for("c"), monitor.pending) == (0, 2, 2)
    with images:
        assert masks.wait_s == pytest.approx(WAIT_SAFETY_FACTOR * 0.005)


def test_a_failed_task_is_not_pending() -> None:
    monitor = HostLoadMonitor()
    with pytest.raises(ValueError, match="damaged"), monitor.timer("images", "a"):
        raise ValueError("damaged")
    assert monitor.pending == 0


def test_the_mean_follows_the_first_tasks_fully_and_later_ones_slowly() -> None:
    timer = HostLoadMonitor().timer("images", "a")
    for _ in range(3):
        timer.record(0.02, 0.01)
    assert timer.wait_s == pytest.approx(0.02)
    for _ in range(100):
        timer.record(0.02, 0.01)
    timer.record(2.0, 1.0)
    assert timer.wait_s < 0.15


def test_recent_cpu_time_is_forgotten_after_a_while() -> None:
    monitor = HostLoadMonitor(threads=2)
    assert monitor.load.recent == 0
    for _ in range(10):
        monitor.timer("images", "a").record(0.01, 0.01)
    assert 0.2 < monitor.load.recent <= 0.5
    time.sleep(0.4)
    assert monitor.load.recent < 0.1


def test_the_pools_use_no_more_cores_than_they_have_threads() -> None:
    assert CpuLoad(0.1, 0.5, 0.0, 2).cores(1.0) == pytest.approx(0.6)
    assert CpuLoad(0.1, 0.5, 9.0, 2).cores(1.0) == pytest.approx(2.1)
    assert CpuLoad(0.1, 0.2, 0.5, 2).cores(1.0) == pytest.approx(0.6)


def test_a_refusal_on_an_idle_machine_halves_the_durations() -> None:
    monitor = HostLoadMonitor()
    timer = monitor.timer("images", "a")
    timer.record(0.02, 0.01)
    monitor.decay()
    assert timer.wait_s == pytest.approx(0.01)
    assert monitor.timer("images", "a") is timer


def test_the_load_of_the_event_loop_is_sampled() -> None:
    monitor = HostLoadMonitor()
    monitor.load  # noqa: B018 - the first sample begins the interval
    ends_at = time.thread_time() + LOOP_SAMPLE_S + 0.05
    while time.thread_time() < ends_at:
        pass
    assert 0.0 < monitor.load.event_loop <= 1.01
    busy = monitor.load.event_loop
    assert monitor.load.event_loop == busy, "no new sample within the interval"
