"""The scaling policy: demand over time in, replicas out. Pure; all times come from the caller.

Demand is full-quality demand: replicas that would be busy if every request that came, refused ones too, were
served at full. An adaptive server holds its latency and its queue flat by spending less on each, so that
neither tells that it needs help; this does.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FEW = 5
"""Samples that have to go on rising for a trend to be one."""


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """How demand becomes replicas."""

    min_replicas: int = 1
    max_replicas: int = 10
    utilisation: float = 0.75
    """Share of a replica's time that requests at full may fill: the rest is for bursts."""
    replica_startup_s: float = 30.0
    """Seconds until a replica that is asked for serves: so far ahead demand is foreseen."""
    downscale_delay_s: float = 300.0
    """Replicas are taken away only down to what was needed at any time within so long."""
    slack: float = 0.1
    """Of a replica: what demand may be over the replicas there are before another one is worth it."""
    max_growth_factor: float = 2.0
    """How many times as many replicas a decision may ask for at most; one more is always allowed."""
    max_forecast_growth: float = 1.0
    """How much more than there is now may be foreseen, as a share of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError("there are at least 0 replicas, and at most no fewer than at least")
        if not 0 < self.utilisation <= 1 or self.max_growth_factor <= 1:
            raise ValueError("utilisation is above 0 and at most 1, and growth is above 1")


@dataclass(frozen=True, slots=True)
class DemandSample:
    """Demand at one time."""

    at: float
    """Seconds of any clock that does not go back."""
    demand: float
    """Full-quality demand, in replicas that are busy all the time."""


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How many replicas there should be, and why."""

    replicas: int
    reason: str
    needed: float
    """Replicas that what is foreseen takes, before rounding and bounds."""


def desired_replicas(history: Sequence[DemandSample], replicas: int, rules: ScalingConfig) -> ScalingDecision:
    """What to do now, at the time of the last sample.

    history: in order, of at least `calm_s` where there is that much; replicas: there or on their way.
    """
    if not history:
        return ScalingDecision(_bounded(replicas, rules), "nothing has been seen yet", 0.0)
    ahead = forecast_demand(history, rules)
    needed = ahead / rules.utilisation
    up = math.ceil(needed - rules.slack)
    if up > replicas:
        step_limit = max(replicas + 1, math.floor(rules.max_growth_factor * replicas))
        wanted = _bounded(min(up, step_limit), rules)
        rising = ahead > history[-1].demand * 1.05
        why = f"demand {history[-1].demand:.2f}" + (f", foreseen {ahead:.2f}," if rising else "")
        return ScalingDecision(wanted, f"{why} takes {needed:.2f} replicas", needed)
    lately = [seen for seen in history if seen.at > history[-1].at - rules.downscale_delay_s]
    peak = max(seen.demand for seen in lately) / rules.utilisation
    down = max(math.ceil(peak), up)
    if down < replicas:
        whole = history[0].at <= history[-1].at - rules.downscale_delay_s
        if not whole:
            return ScalingDecision(
                _bounded(replicas, rules), "too little has been seen to take any away", needed
            )
        return ScalingDecision(_bounded(down, rules), f"at most {peak:.2f} were needed of late", needed)
    return ScalingDecision(_bounded(replicas, rules), f"{needed:.2f} are needed", needed)


def forecast_demand(history: Sequence[DemandSample], rules: ScalingConfig) -> float:
    """Demand once a replica that is asked for now would serve: what there is now, carried on by its trend
    where that rises; what falls is not foreseen to fall on. A trend is what the last two starts and most of
    the last few samples agree on: a jump is not taken to go on."""
    now = history[-1]
    slope = min(_slope(history, now.at - 2 * rules.replica_startup_s), _last(history[-FEW:]))
    return now.demand + min(max(0.0, slope) * rules.replica_startup_s, rules.max_forecast_growth * now.demand)


def _last(few: Sequence[DemandSample]) -> float:
    """Demand a second, the median from sample to sample."""
    rises = [(b.demand - a.demand) / (b.at - a.at) for a, b in itertools.pairwise(few) if b.at > a.at]
    return statistics.median(rises) if rises else 0.0


def _slope(history: Sequence[DemandSample], since: float) -> float:
    """Of demand a second, by least squares, as far as the samples follow it: noise rises as steeply."""
    recent = [seen for seen in history if seen.at >= since]
    if len(recent) < 3:
        return 0.0
    middle = sum(seen.at for seen in recent) / len(recent)
    mean = sum(seen.demand for seen in recent) / len(recent)
    spread = sum((seen.at - middle) ** 2 for seen in recent)
    about = sum((seen.demand - mean) ** 2 for seen in recent)
    if not spread or not about:
        return 0.0
    slope = sum((seen.at - middle) * (seen.demand - mean) for seen in recent) / spread
    return slope * (slope**2 * spread / about)


def _bounded(replicas: int, rules: ScalingConfig) -> int:
    return min(rules.max_replicas, max(rules.min_replicas, replicas))
