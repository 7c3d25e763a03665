"""The time that a run may take: over all attempts of a run that was interrupted."""

import math
import re
import time
from collections.abc import Callable

from foveate.core.errors import SetupError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
MAX_HOURS = 168
"""Longest budget: seven days."""


class TimeBudget:
    """A number of seconds, and how many of them are spent."""

    def __init__(
        self, seconds: float | None, spent_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """seconds: None for no limit; spent_s: by earlier attempts."""
        self.seconds, self._before, self._clock = seconds, spent_s, clock
        self._started = clock()

    @property
    def spent_s(self) -> float:
        """Seconds that are spent, over all attempts."""
        return self._before + self._clock() - self._started

    def left_s(self, share: float = 1.0) -> float:
        """Seconds that are left of a share of the budget, at least 0; infinite without a limit."""
        return math.inf if self.seconds is None else max(0.0, share * self.seconds - self.spent_s)

    def ended(self, share: float = 1.0) -> bool:
        """Whether a share of the budget is spent."""
        return self.left_s(share) <= 0


def parse_budget(text: str | None) -> float | None:
    """Seconds from a text such as `90s`, `10m` or `1h30m`; None for None.

    Raises SetupError for others, and for more than MAX_HOURS.
    """
    if text is None:
        return None
    parts = re.findall(r"([0-9]*\.?[0-9]+)([smh])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds:
        raise SetupError(f"a budget is a time such as 90s, 10m or 1h30m, not {text[:40]!r}")
    if seconds > MAX_HOURS * UNITS["h"]:
        raise SetupError(
            f"a budget is at most {MAX_HOURS}h, which is {MAX_HOURS // 24} days, not {text[:40]}"
        )
    return seconds
