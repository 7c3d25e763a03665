"""What a gateway knows about the workers of one deployment: their queues, and how long messages take."""

from collections.abc import Mapping
from time import monotonic

TRANSIT_GAIN = 0.1
"""Weight of the newest measurement in the moving average of the transit time."""
MAX_TRANSIT_S = 0.5
"""Upper bound of one measured transit time, so that one slow call does not dominate the average."""
QUEUE_REPORT_TTL_S = 60.0
"""Seconds that the queue length of a worker stays valid. A worker that is silent for longer may be gone."""


class WorkerReports:
    """The last reports of the workers of one deployment."""

    def __init__(self) -> None:
        self.transit_s = 0.0
        """Moving average of the seconds that a request spends on the way, both directions together."""
        self._queues: dict[str, tuple[Mapping[str, float], float]] = {}

    def receive(self, worker: str, queue_wait_s: Mapping[str, float]) -> None:
        """Take the report of a worker: by model, seconds as of `queue_wait_s`."""
        self._queues[worker] = queue_wait_s, monotonic()

    def queue_wait_s(self, model: str) -> float:
        """Predicted seconds until the least loaded worker has run its queued requests.

        Each worker's last report is reduced by the seconds since then. 0 without a report.
        """
        now = monotonic()
        self._queues = {
            worker: report for worker, report in self._queues.items() if now - report[1] <= QUEUE_REPORT_TTL_S
        }
        waits = (waits_s.get(model, 0.0) - (now - at) for waits_s, at in self._queues.values())
        return max(0.0, min(waits, default=0.0))

    def observe_transit(self, seconds: float) -> None:
        """Take a measured transit time."""
        self.transit_s += TRANSIT_GAIN * (min(MAX_TRANSIT_S, max(0.0, seconds)) - self.transit_s)

    def remaining_s(self, deadline: float | None, now: float) -> float | None:
        """Seconds that a worker has until a deadline: those that are left, less the transit time.

        The transit time takes at most half of them. None without a deadline.
        """
        if deadline is None:
            return None
        remaining_s = max(0.0, deadline - now)
        return remaining_s - min(self.transit_s, remaining_s / 2)
