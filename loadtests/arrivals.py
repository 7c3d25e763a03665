"""When requests are sent: open-loop schedules from a shape's name, a rate and a seed, or from a trace."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import SetupError

Times = NDArray[np.float64]
RateAt = Callable[[Times], Times]

PERIOD_S = 2.0
"""From the start of one burst to the start of the next, in an on/off schedule."""
BURST, BURST_H, BURSTS_AT = 2.0, 0.5, (3, 8, 12.5, 16, 20)
"""How many times as much comes in a burst of a day, for how many of its 24 hours, and from when on."""
STAMP = 1e8
"""A trace that begins so late, three years in seconds, gives seconds since 1970."""
SHAPES = "constant, poisson, gamma:CV, step:X, ramp:X, onoff:X, day:X, trace:PATH"


def schedule(shape: str, rate: float, seconds: float, seed: int) -> Times:
    """Send times, sorted, in seconds from 0 and less than `seconds`. The same seed gives the same times.

    constant: evenly spaced; poisson: gaps are exponential; gamma:CV: gaps of that coefficient of
    variation, bursty above 1; step:X: X times the rate in the middle third; ramp:X: from the rate
    to X times it; onoff:X: X times the rate for 1/X of every PERIOD_S and nothing in the rest of it.
    day:X: a night at a quarter of the rate, a morning and an evening at up to X times it, and five bursts of
    twice what else would come. The last four are Poisson at a rate that changes. trace:PATH: a file with a
    time a line, or in the first column of a CSV file, in seconds, seconds since 1970 or ISO 8601, replayed as
    it is, whatever the rate, the duration and the seed; dates count from the first. Raises SetupError.
    """
    name, _, argument = shape.partition(":")
    if name == "trace":
        return _read(argument)
    if not (rate > 0 and seconds > 0):
        raise SetupError(f"a schedule needs a rate and a duration above 0, not {rate:g} and {seconds:g}")
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
    raise SetupError(f"{shape!r} is no arrival shape; there are {SHAPES}")


def _number(shape: str, argument: str, least: float) -> float:
    try:
        number = float(argument)
    except ValueError:
        number = np.nan
    if not (least < number < np.inf or number == least == 1):
        bound = "at least 1" if least else "above 0"
        raise SetupError(f"{shape!r} is no arrival shape: what follows the colon is a number {bound}")
    return number


def _renewal(random: np.random.Generator, cv: float, rate: float, seconds: float) -> Times:
    """Independent gaps from a Gamma distribution with mean 1/rate and this coefficient of variation."""
    chunk = int(rate * seconds) + 16
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        gaps = random.gamma(cv**-2, cv**2 / rate, chunk)
        times = np.concatenate([times, gaps.cumsum() + (times[-1] if len(times) else 0.0)])
    return times[times < seconds]


def _thinned(random: np.random.Generator, rate_at: RateAt, peak: float, seconds: float) -> Times:
    """A Poisson process of a rate that changes (Lewis and Shedler 1979): one at the peak rate, of whose
    points each is kept with the probability rate / peak."""
    times = _renewal(random, 1.0, peak, seconds)
    return times[random.random(len(times)) * peak < rate_at(times)]


def _rate_at(name: str, factor: float, rate: float, seconds: float) -> RateAt:
    def step(times: Times) -> Times:
        middle = (times >= seconds / 3) & (times < 2 * seconds / 3)
        return np.where(middle, factor * rate, rate)

    def ramp(times: Times) -> Times:
        return rate * (1 + (factor - 1) * times / seconds)

    def onoff(times: Times) -> Times:
        return np.where(times % PERIOD_S < PERIOD_S / factor, factor * rate, 0.0)

    def day(times: Times) -> Times:
        hours = 24 * times / seconds
        busy = np.exp(-(((hours - 10) / 2.5) ** 2)) + np.exp(-(((hours - 19) / 2) ** 2))
        burst = np.any([(hours >= start) & (hours < start + BURST_H) for start in BURSTS_AT], 0)
        return rate * (0.25 + (factor - 0.25) * busy.clip(0, 1)) * np.where(burst, BURST, 1)

    return {"step": step, "ramp": ramp, "onoff": onoff, "day": day}[name]


def _read(path: str) -> Times:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SetupError(f"the trace {path!r} cannot be read: {why}") from None
    cells = [line.split(",")[0].strip() for line in lines if line.strip()]
    if cells and np.isnan(_seconds(cells[0])):  # a header
        del cells[0]
    times = np.array([_seconds(cell) for cell in cells])
    if np.isnan(times).any():
        wrong = cells[int(np.isnan(times).argmax())]
        raise SetupError(f"the trace {path!r} has {wrong[:40]!r}, which is neither seconds nor a date")
    if not (np.isfinite(times) & (times >= 0)).all():
        raise SetupError(f"the trace {path!r} has a time that is not finite or lies before 0")
    times.sort()
    return times - times[0] if len(times) and times[0] >= STAMP else times


def _seconds(cell: str) -> float:
    """NaN for what is no time."""
    try:
        return float(cell)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(cell)
    except ValueError:
        return math.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
