"""Open-loop arrival schedules, from the name of a shape, a rate and a seed, or from a trace."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import SetupError

SendTimes = NDArray[np.float64]
RateAt = Callable[[SendTimes], SendTimes]

PERIOD_S = 2.0
"""From the start of one burst to the start of the next, in an on/off schedule."""
BURST, BURST_H, BURSTS_AT = 2.0, 0.5, (3, 8, 12.5, 16, 20)
"""The bursts of a day: the factor on the rate, the length in hours (of 24), and the starts in hours."""
STAMP = 1e8
"""A trace whose first time is at least this (three years in seconds) gives seconds since 1970."""
SHAPES = "constant, poisson, gamma:CV, step:X, ramp:X, onoff:X, day:X, trace:PATH"


def schedule(shape: str, rate: float, seconds: float, seed: int) -> SendTimes:
    """Send times in seconds, sorted, at least 0 and below `seconds`. The same seed gives the same times.

    constant: even gaps. poisson: exponential gaps. gamma:CV: gaps with this coefficient of variation; bursty
    above 1. step:X: X times the rate in the middle third. ramp:X: the rate grows to X times its start.
    onoff:X: X times the rate during the first 1/X of every PERIOD_S, and no requests in the rest of it.
    day:X: a night at a quarter of the rate, a morning and an evening at up to X times the rate, and five
    bursts that double the rate. step, ramp, onoff and day are Poisson processes whose rate changes.

    trace:PATH: a file with one time per line, or a CSV file with times in its first column. A time is in
    seconds, in seconds since 1970, or in ISO 8601. The trace is replayed unchanged: rate, duration and seed
    have no effect. Dates count from the first one.

    Raises SetupError for an unknown shape, an argument out of range or an unreadable trace.
    """
    name, _, argument = shape.partition(":")
    if name == "trace":
        return _read(argument)
    if not (rate > 0 and seconds > 0):
        raise SetupError(f"the rate and the duration must be above 0, not {rate:g} and {seconds:g}")
    random = np.random.default_rng(seed)
    match name:
        case "constant" if not argument:
            return np.arange(np.ceil(seconds * rate)) / rate
        case "poisson" if not argument:
            return _renewal(random, 1.0, rate, seconds)
        case "gamma":
            return _renewal(random, _number(shape, argument, 0), rate, seconds)
        case "step" | "ramp" | "onoff" | "day":
            factor = _number(shape, argument, 1)
            peak = rate * factor * (BURST if name == "day" else 1)
            return _thinned(random, _rate_at(name, factor, rate, seconds), peak, seconds)
    raise SetupError(f"{shape!r} is not an arrival shape; use one of {SHAPES}")


def _number(shape: str, argument: str, minimum: float) -> float:
    """The argument of a shape: above 0 for a `minimum` of 0, at least 1 for a `minimum` of 1."""
    try:
        number = float(argument)
    except ValueError:
        number = np.nan
    if not (minimum < number < np.inf or number == minimum == 1):
        bound = "at least 1" if minimum else "above 0"
        raise SetupError(f"{shape!r} is not an arrival shape: the colon must be followed by a number {bound}")
    return number


def _renewal(random: np.random.Generator, cv: float, rate: float, seconds: float) -> SendTimes:
    """Independent gaps from a Gamma distribution with mean 1/rate and this coefficient of variation."""
    chunk = int(rate * seconds) + 16
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        gaps = random.gamma(cv**-2, cv**2 / rate, chunk)
        times = np.concatenate([times, gaps.cumsum() + (times[-1] if len(times) else 0.0)])
    return times[times < seconds]


def _thinned(random: np.random.Generator, rate_at: RateAt, peak: float, seconds: float) -> SendTimes:
    """A Poisson process whose rate changes, by thinning (Lewis and Shedler 1979): each point of a process at
    the peak rate is kept with probability rate / peak."""
    times = _renewal(random, 1.0, peak, seconds)
    return times[random.random(len(times)) * peak < rate_at(times)]


def _rate_at(name: str, factor: float, rate: float, seconds: float) -> RateAt:
    """The rate over time of one of the shapes with a changing rate."""

    def step(times: SendTimes) -> SendTimes:
        middle = (times >= seconds / 3) & (times < 2 * seconds / 3)
        return np.where(middle, factor * rate, rate)

    def ramp(times: SendTimes) -> SendTimes:
        return rate * (1 + (factor - 1) * times / seconds)

    def onoff(times: SendTimes) -> SendTimes:
        return np.where(times % PERIOD_S < PERIOD_S / factor, factor * rate, 0.0)

    def day(times: SendTimes) -> SendTimes:
        hours = 24 * times / seconds
        busy = np.exp(-(((hours - 10) / 2.5) ** 2)) + np.exp(-(((hours - 19) / 2) ** 2))
        burst = np.any([(hours >= start) & (hours < start + BURST_H) for start in BURSTS_AT], 0)
        return rate * (0.25 + (factor - 0.25) * busy.clip(0, 1)) * np.where(burst, BURST, 1)

    return {"step": step, "ramp": ramp, "onoff": onoff, "day": day}[name]


def _read(path: str) -> SendTimes:
    """The times of a trace. Raises SetupError."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise SetupError(f"the trace {path!r} cannot be read: {reason}") from None
    cells = [line.split(",")[0].strip() for line in lines if line.strip()]
    if cells and np.isnan(_seconds(cells[0])):  # a header line
        del cells[0]
    times = np.array([_seconds(cell) for cell in cells])
    if np.isnan(times).any():
        invalid = cells[int(np.isnan(times).argmax())]
        raise SetupError(f"the trace {path!r} has {invalid[:40]!r}, which is neither seconds nor a date")
    if not (np.isfinite(times) & (times >= 0)).all():
        raise SetupError(f"the trace {path!r} has a time that is not finite or is negative")
    times.sort()
    return times - times[0] if len(times) and times[0] >= STAMP else times


def _seconds(cell: str) -> float:
    """Seconds from a number or an ISO 8601 date; NaN for any other text."""
    try:
        return float(cell)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(cell)
    except ValueError:
        return math.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
