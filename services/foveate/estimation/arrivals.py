"""How requests have been coming of late: the rate, and the time they allow."""

import math
from dataclasses import dataclass

MEMORY_S = 0.2
"""Arrivals this long ago count for 1/e of one that comes now."""
BRIEF = 0.05
"""The same in a burst, as a share of the time that is allowed: it has to show while there is time left."""
LEAST_SEEN = 0.1
"""Counting that has just begun is taken to have seen this share of a memory."""


@dataclass(frozen=True, slots=True)
class ArrivalStats:
    """Recent arrivals of requests to one model."""

    rate: float = 0.0
    """Requests per second."""
    allowed_s: float = math.inf
    """Mean seconds from arrival to deadline."""
    preparing: int = 0
    """Admitted requests whose media are being decoded; they join the queue soon."""


class ArrivalMeter:
    """Exponentially weighted counts of arrivals.

    The faster of two memories counts, for a burst must not be met with what the calm before it allowed.
    """

    def __init__(self, lone_s: float = 0.0) -> None:
        """lone_s: seconds a lone request takes; a burst cannot show in less."""
        self.lone_s, self.last = lone_s, -math.inf
        self._count = self._allowed = self._burst = 0.0
        self._first, self._brief_s = math.inf, 0.01

    def arrived(self, now: float, allowed_s: float) -> None:
        """A request came that allows so many seconds for its answer."""
        fade = self._fade(now, MEMORY_S)
        self._first = min(self._first, now)
        self._count = fade * self._count + 1
        self._allowed = fade * self._allowed + allowed_s
        self._brief_s = max(self.lone_s, BRIEF * self._allowed / self._count)
        self._burst = self._fade(now, self._brief_s) * self._burst + 1
        self.last = now

    def read(self, now: float) -> ArrivalStats:
        """The flow as of now."""
        if not self._count:
            return ArrivalStats()
        # One alone is no flow: those are expected who come as the others did, and not the last one again.
        seen = max(LEAST_SEEN, 1 - math.exp((self._first - now) / MEMORY_S))
        steady = self._fade(now, MEMORY_S) * (self._count - 1) / (MEMORY_S * seen)
        burst = self._fade(now, self._brief_s) * (self._burst - 1) / self._brief_s
        return ArrivalStats(max(steady, burst), self._allowed / self._count)

    def _fade(self, now: float, memory_s: float) -> float:
        return math.exp((self.last - now) / memory_s)
