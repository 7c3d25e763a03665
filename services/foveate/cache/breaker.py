"""A circuit breaker: stops calls to a service that fails, and tries it again after a pause."""

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]

FAILURE_THRESHOLD = 3
"""Consecutive failures that open the breaker."""
MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0
"""Seconds that the breaker stays open: at first, and at most. A failed probe doubles them."""
PROBE_TIMEOUT_S = 5.0
"""A probe without a result after this many seconds is given up, and another call may probe."""


class CircuitBreaker:
    """Closed: all calls are allowed. Open: none. Half-open: one call probes the service."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: returns seconds and does not go back."""
        self.clock = clock
        self._failures = 0
        self._pause_s = MIN_PAUSE_S
        self._open_until = 0.0
        self._probe_until = 0.0

    @property
    def state(self) -> State:
        """The state at this moment."""
        if self._failures < FAILURE_THRESHOLD:
            return "closed"
        return "open" if self.clock() < self._open_until else "half-open"

    def allow(self) -> bool:
        """Whether to call the service. The caller must record the result of a call that is allowed."""
        state, now = self.state, self.clock()
        if state == "half-open":
            if now < self._probe_until:
                return False
            self._probe_until = now + PROBE_TIMEOUT_S
        return state != "open"

    def record_success(self) -> None:
        """The call succeeded: close the breaker."""
        self._failures, self._pause_s, self._probe_until = 0, MIN_PAUSE_S, 0.0

    def record_cancellation(self) -> None:
        """The call was cancelled before it had a result: another call may probe."""
        self._probe_until = 0.0

    def record_failure(self) -> None:
        """The call failed: open the breaker at the threshold, and for twice as long after a failed probe."""
        half_open = self.state == "half-open"
        self._failures += 1
        if half_open:
            self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
        if half_open or self._failures == FAILURE_THRESHOLD:
            self._open_until = self.clock() + self._pause_s
        self._probe_until = 0.0
