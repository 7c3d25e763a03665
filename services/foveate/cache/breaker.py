"""Leaves what fails alone for a while, then tries it once."""

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]

FAILURES = 3
"""In a row, that open it."""
PAUSE_S, MOST_S = 0.5, 10.0
"""The first pause; each one after a failed probe is twice as long, up to the last."""
PROBE_S = 5.0
"""A probe that has not come back by then is given up, and another one may go."""


class Breaker:
    """A circuit breaker. Closed, everybody may pass; open, nobody; half-open, one goes ahead and tells."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._failed = 0
        self._pause_s = PAUSE_S
        self._until = 0.0
        self._probing_until = 0.0

    @property
    def state(self) -> State:
        if self._failed < FAILURES:
            return "closed"
        return "open" if self.clock() < self._until else "half-open"

    def passes(self) -> bool:
        """Whether to try. Whoever does has to tell how it went."""
        state, now = self.state, self.clock()
        if state == "half-open":
            if now < self._probing_until:
                return False
            self._probing_until = now + PROBE_S
        return state != "open"

    def succeeded(self) -> None:
        self._failed, self._pause_s, self._probing_until = 0, PAUSE_S, 0.0

    def cancelled(self) -> None:
        """Whoever tried did not stay to see; another one may."""
        self._probing_until = 0.0

    def failed(self) -> None:
        half_open = self.state == "half-open"
        self._failed += 1
        if half_open:
            self._pause_s = min(MOST_S, 2 * self._pause_s)
        if half_open or self._failed == FAILURES:
            self._until = self.clock() + self._pause_s
        self._probing_until = 0.0
