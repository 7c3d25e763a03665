"""Measures the CPU work of this process besides forwards: the event loop, decoding and encoding."""

import math
import time
from dataclasses import dataclass

MEMORY_S = 0.2
"""Time constant of the recent load: CPU time spent this long ago counts 1/e of CPU time spent now."""
LOOP_SAMPLE_S = 0.25
"""Interval at which the CPU use of the event loop's thread is sampled."""
TASK_GAIN = 0.05
"""Gain of the moving mean of a task's duration."""

WAIT_SAFETY_FACTOR = 3.0
"""Factor on the predicted wait in a thread pool. If every request were admitted that could just meet its
deadline, the pool's queue would stay as long as the deadlines, and every delay would make all queued requests
late."""


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """The load on the cores that a forward would share."""

    event_loop: float = 0.0
    """Cores that the event loop keeps busy."""
    recent: float = 0.0
    """Cores that decoding and encoding have kept busy recently."""
    pending_cpu_s: float = 0.0
    """CPU seconds that the pending decoding and encoding tasks will take."""
    threads: int = 1
    """Threads that decode and encode."""

    def cores(self, span_s: float) -> float:
        """Mean number of busy cores over the next `span_s` seconds."""
        return self.event_loop + min(self.threads, max(self.recent, self.pending_cpu_s / span_s))


class TaskTimer:
    """Durations and pending count of one kind of task on one thread pool, for example decoding for one model.

    A context manager: enter it for each task while the task waits or runs.
    """

    def __init__(self, monitor: "HostLoadMonitor", pool: str) -> None:
        self.monitor, self.pool = monitor, pool
        self.pending = 0
        """Tasks that wait or run."""
        self.mean_s = 0.0
        """Moving mean of a task's seconds, without its wait."""
        self.mean_cpu_s = 0.0
        """Moving mean of a task's CPU seconds."""
        self._count = 0

    def __enter__(self) -> None:
        self.pending += 1

    def __exit__(self, *_: object) -> None:
        self.pending -= 1

    def record(self, seconds: float, cpu_s: float) -> None:
        """A task has taken this many seconds, without its wait, and this many CPU seconds."""
        self._count += 1
        gain = max(TASK_GAIN, 1 / self._count)
        self.mean_s += gain * (seconds - self.mean_s)
        self.mean_cpu_s += gain * (cpu_s - self.mean_cpu_s)
        self.monitor.record_cpu(cpu_s)

    @property
    def wait_s(self) -> float:
        """Seconds until a task that is submitted now is done; the wait in the pool is overestimated."""
        return WAIT_SAFETY_FACTOR * self.monitor.pool_wait_s(self.pool) + self.mean_s


class HostLoadMonitor:
    """Counts the decoding and encoding tasks of this process and their cost. Used on the event loop only."""

    def __init__(self, threads: int = 1) -> None:
        """threads: size of each thread pool."""
        self.threads = threads
        self._timers: dict[tuple[str, str], TaskTimer] = {}
        self._busy_s, self._last_at = 0.0, -math.inf
        self._sampled_at, self._loop_cpu_s, self._loop_share = -math.inf, 0.0, 0.0

    def timer(self, pool: str, name: str) -> TaskTimer:
        """The timer of the tasks with this name, for example a model's, on this pool."""
        key = pool, name
        if key not in self._timers:
            self._timers[key] = TaskTimer(self, pool)
        return self._timers[key]

    @property
    def pending(self) -> int:
        """Tasks that wait or run, of all kinds."""
        return sum(timer.pending for timer in self._timers.values())

    def pending_for(self, name: str) -> int:
        """Tasks with this name that wait or run, on all pools."""
        return sum(timer.pending for (_, task), timer in self._timers.items() if task == name)

    def pool_wait_s(self, pool: str) -> float:
        """Seconds until the threads of a pool have done their pending tasks."""
        waits = (timer.pending * timer.mean_s for timer in self._timers.values() if timer.pool == pool)
        return sum(waits) / self.threads

    def record_cpu(self, cpu_s: float) -> None:
        """Add CPU seconds that a task has just spent."""
        now = time.monotonic()
        self._busy_s, self._last_at = self._busy_s * self._decay(now) + cpu_s, now

    def decay(self) -> None:
        """Halve the task durations: they may be out of date."""
        for timer in self._timers.values():
            timer.mean_s /= 2

    @property
    def load(self) -> CpuLoad:
        """The CPU load now."""
        now = time.monotonic()
        recent = self._busy_s * self._decay(now) / MEMORY_S
        pending_cpu_s = sum(timer.pending * timer.mean_cpu_s for timer in self._timers.values())
        return CpuLoad(self._sample_loop(now), recent, pending_cpu_s, self.threads)

    def _decay(self, now: float) -> float:
        return math.exp((self._last_at - now) / MEMORY_S)

    def _sample_loop(self, now: float) -> float:
        """Share of a core that the calling thread, the event loop's, uses; sampled again when due."""
        if now - self._sampled_at >= LOOP_SAMPLE_S:
            cpu_s = time.thread_time()
            self._loop_share = (cpu_s - self._loop_cpu_s) / (now - self._sampled_at)
            self._sampled_at, self._loop_cpu_s = now, cpu_s
        return self._loop_share
