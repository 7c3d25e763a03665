"""Estimates the arrival rate of requests and the time that they allow."""

import math
from dataclasses import dataclass

MEMORY_S = 0.2
"""Time constant of the steady estimate: an arrival of this age counts 1/e of a new one."""
BURST_MEMORY_SHARE = 0.05
"""Time constant of the burst estimate, as a share of the mean time allowed. A burst has to be visible while
there is still time to react to it."""
MIN_OBSERVED_SHARE = 0.1
"""A meter that has just started is assumed to have observed this share of its memory."""


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

    The rate is the higher of a steady and a burst estimate: during a burst, the calm before it must not hide
    the load.
    """

    def __init__(self, request_s: float = 0.0) -> None:
        """request_s: seconds that a single request takes; the burst memory is at least this long."""
        self.request_s = request_s
        self.last_at = -math.inf
        """Time of the last arrival; clock seconds."""
        self._count = self._allowed = self._burst = 0.0
        self._first_at, self._burst_memory_s = math.inf, 0.01

    def record(self, now: float, allowed_s: float) -> None:
        """Count a request that arrives now and allows this many seconds for its answer."""
        decay = self._decay(now, MEMORY_S)
        self._first_at = min(self._first_at, now)
        self._count = decay * self._count + 1
        self._allowed = decay * self._allowed + allowed_s
        self._burst_memory_s = max(self.request_s, BURST_MEMORY_SHARE * self._allowed / self._count)
        self._burst = self._decay(now, self._burst_memory_s) * self._burst + 1
        self.last_at = now

    def read(self, now: float) -> ArrivalStats:
        """The estimates at this time, without `preparing`."""
        if not self._count:
            return ArrivalStats()
        # The last arrival is not counted: a single request is no evidence that another one follows.
        observed = max(MIN_OBSERVED_SHARE, 1 - math.exp((self._first_at - now) / MEMORY_S))
        steady = self._decay(now, MEMORY_S) * (self._count - 1) / (MEMORY_S * observed)
        burst = self._decay(now, self._burst_memory_s) * (self._burst - 1) / self._burst_memory_s
        return ArrivalStats(max(steady, burst), self._allowed / self._count)

    def _decay(self, now: float, memory_s: float) -> float:
        """The weight that the last arrival has now."""
        return math.exp((self.last_at - now) / memory_s)
