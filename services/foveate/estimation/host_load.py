"""What the cores of this machine do besides forwards: requests are read and answers drawn on them too."""

import math
import time
from dataclasses import dataclass

MEMORY_S = 0.2
"""Work done so long ago counts for 1/e of what is done now."""
LOOK_S = 0.25
"""How often the event loop's own use of a core is looked at."""
GAIN = 0.05
"""How fast the seconds of a piece of work follow the last one."""

DOUBT = 3.0
"""By how much the wait behind others is overestimated. If all were let in who could just so be in time, the
line would stay as long as their deadlines, and every slip would be at the cost of everybody in it."""


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """What else wants the cores that a forward would run on."""

    steady: float = 0.0
    """Cores that the event loop keeps busy."""
    making: float = 0.0
    """Cores that have been busy with reading media and drawing answers."""
    pending_s: float = 0.0
    """Processor seconds that what has come already will take."""
    lanes: int = 1
    """Threads that do this."""

    def cores(self, span_s: float) -> float:
        """Mean number of cores in use over so many seconds from now."""
        return self.steady + min(self.lanes, max(self.making, self.pending_s / span_s))


class TaskTimer:
    """What is done on the threads of one pool for one purpose: pictures read for a model, clips for another.

    Entered for each piece as long as it is done or waits for it.
    """

    def __init__(self, host: "HostLoadMonitor", pool: str) -> None:
        self.host, self.pool = host, pool
        self.pending, self.each_s, self.used_s, self._done = 0, 0.0, 0.0, 0

    def __enter__(self) -> None:
        self.pending += 1

    def __exit__(self, *_: object) -> None:
        self.pending -= 1

    def done(self, seconds: float, used_s: float) -> None:
        """A piece took so many seconds, its wait left out, and processor seconds."""
        self._done += 1
        gain = max(GAIN, 1 / self._done)
        self.each_s += gain * (seconds - self.each_s)
        self.used_s += gain * (used_s - self.used_s)
        self.host.spent(used_s)

    @property
    def wait_s(self) -> float:
        """Seconds until a piece that comes now is done, with much to spare where others are before it."""
        return DOUBT * self.host.ahead_s(self.pool) + self.each_s


class HostLoadMonitor:
    """Counts what is being read and drawn, and what that takes. For the event loop's thread alone."""

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes
        self._works: dict[tuple[str, str], TaskTimer] = {}
        self._busy, self._last = 0.0, -math.inf
        self._looked, self._loop_used, self._loop = -math.inf, 0.0, 0.0

    def work(self, pool: str, name: str) -> TaskTimer:
        """What is done on the threads of that pool for the purpose of this name."""
        key = pool, name
        if key not in self._works:
            self._works[key] = TaskTimer(self, pool)
        return self._works[key]

    @property
    def pending(self) -> int:
        """Pieces that are not done, whatever for."""
        return sum(work.pending for work in self._works.values())

    def coming(self, name: str) -> int:
        """Those for the purpose of this name, on whichever pool."""
        return sum(work.pending for (_, of), work in self._works.items() if of == name)

    def ahead_s(self, pool: str) -> float:
        """Seconds until the threads of a pool are done with what they have."""
        waits = (work.pending * work.each_s for work in self._works.values() if work.pool == pool)
        return sum(waits) / self.lanes

    def spent(self, used_s: float) -> None:
        now = time.monotonic()
        self._busy, self._last = self._busy * self._fade(now) + used_s, now

    def decay(self) -> None:
        """What is known of the seconds of each may be out of date."""
        for work in self._works.values():
            work.each_s /= 2

    @property
    def crowd(self) -> CpuLoad:
        """As of now."""
        now = time.monotonic()
        making = self._busy * self._fade(now) / MEMORY_S
        pending_s = sum(work.pending * work.used_s for work in self._works.values())
        return CpuLoad(self._loop_share(now), making, pending_s, self.lanes)

    def _fade(self, now: float) -> float:
        return math.exp((self._last - now) / MEMORY_S)

    def _loop_share(self, now: float) -> float:
        if now - self._looked >= LOOK_S:
            used = time.thread_time()
            self._loop = (used - self._loop_used) / (now - self._looked)
            self._looked, self._loop_used = now, used
        return self._loop
