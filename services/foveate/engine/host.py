"""What the cores of this machine do besides forwards: requests are read and made ready on them too."""

import math
import time
from dataclasses import dataclass

MEMORY_S = 0.2
"""Work done so long ago counts for 1/e of what is done now."""
LOOK_S = 0.25
"""How often the event loop's own use of a core is looked at."""
GAIN = 0.05
"""How fast the seconds of a picture follow the last one."""

DOUBT = 3.0
"""By how much the wait behind others is overestimated. If all were let in who could just so be in time, the
line would stay as long as their deadlines, and every slip would be at the cost of everybody in it."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What else wants the cores that a forward would run on."""

    steady: float = 0.0
    """Cores that the event loop keeps busy."""
    making: float = 0.0
    """Cores that have been busy with making media ready."""
    pending_s: float = 0.0
    """Processor seconds that what has come already will take to be made ready."""
    lanes: int = 1
    """Threads that do this."""

    def cores(self, span_s: float) -> float:
        """Mean number of cores in use over so many seconds from now."""
        return self.steady + min(self.lanes, max(self.making, self.pending_s / span_s))


class Host:
    """Counts media that are being made ready, and what that takes. For the event loop's thread alone.

    Entered for each medium as long as it is made or waits for it.
    """

    def __init__(self, lanes: int = 1) -> None:
        self.lanes, self.pending = lanes, 0
        self._made, self._each_s, self._used_s = 0, 0.0, 0.0
        self._busy, self._last = 0.0, -math.inf
        self._looked, self._loop_used, self._loop = -math.inf, 0.0, 0.0

    def __enter__(self) -> None:
        self.pending += 1

    def __exit__(self, *_: object) -> None:
        self.pending -= 1

    def made(self, seconds: float, used_s: float) -> None:
        """One was made ready in so many seconds, its wait left out, and processor seconds."""
        self._made += 1
        gain = max(GAIN, 1 / self._made)
        self._each_s += gain * (seconds - self._each_s)
        self._used_s += gain * (used_s - self._used_s)
        now = time.monotonic()
        self._busy, self._last = self._busy * self._fade(now) + used_s, now

    def doubt(self) -> None:
        """What is known of the seconds of a picture may be out of date."""
        self._each_s /= 2

    @property
    def wait_s(self) -> float:
        """Seconds until one that comes now is ready, with much to spare where others come before it."""
        return (DOUBT * self.pending / self.lanes + 1) * self._each_s

    @property
    def crowd(self) -> Crowd:
        """As of now."""
        now = time.monotonic()
        making = self._busy * self._fade(now) / MEMORY_S
        return Crowd(self._loop_share(now), making, self.pending * self._used_s, self.lanes)

    def _fade(self, now: float) -> float:
        return math.exp((self._last - now) / MEMORY_S)

    def _loop_share(self, now: float) -> float:
        if now - self._looked >= LOOK_S:
            used = time.thread_time()
            self._loop = (used - self._loop_used) / (now - self._looked)
            self._looked, self._loop_used = now, used
        return self._loop
