"""The scaling policy: computes the number of replicas from the demand over time.

Demand is full-quality demand: the replicas that would be busy if every request, refused ones included, was
served at full quality. An adaptive server keeps its latency and its queue short by spending less on each
request, so that neither latency nor queue length shows that it needs more replicas. Full-quality demand does.

All functions are pure. All times come from the caller.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TREND_SAMPLES = 5
"""The newest samples whose median rise limits the trend."""
RISE_THRESHOLD = 1.05
"""A decision mentions the forecast if it is this many times the demand."""


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """The parameters of the scaling policy. Raises ValueError for values out of range."""

    min_replicas: int = 1
    max_replicas: int = 10
    utilisation: float = 0.75
    """Share of a replica's time that requests at full quality may use, in (0, 1]. The rest is for bursts."""
    replica_startup_s: float = 30.0
    """Seconds from the start of a replica until it serves. The demand forecast looks this far ahead."""
    downscale_delay_s: float = 300.0
    """Replicas are removed only if they were not needed at any time within this many seconds."""
    slack: float = 0.1
    """Demand above the current number of replicas, in replicas, that does not start another replica."""
    max_growth_factor: float = 2.0
    """Upper bound of one decision: this many times the current replicas, but always one more than them."""
    max_forecast_growth: float = 1.0
    """Upper bound of the growth that the forecast adds, as a share of the current demand."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} and max_replicas is {self.max_replicas}; "
                "use 0 <= min_replicas <= max_replicas"
            )
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation:g}; use a value above 0 and at most 1")
        if self.max_growth_factor <= 1:
            raise ValueError(f"max_growth_factor is {self.max_growth_factor:g}; use a value above 1")


@dataclass(frozen=True, slots=True)
class DemandSample:
    """The demand at one time."""

    at: float
    """Seconds of a clock that does not go back."""
    demand: float
    """Full-quality demand, in replicas that are busy all the time."""


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """The desired number of replicas, with the reason."""

    replicas: int
    reason: str
    needed: float
    """Replicas that the forecast demand needs, before rounding and bounds."""


def desired_replicas(
    history: Sequence[DemandSample], replicas: int, config: ScalingConfig
) -> ScalingDecision:
    """The decision at the time of the last sample.

    history: samples in order, covering at least `downscale_delay_s` if there are that many; replicas: those
    that serve or start.
    """
    if not history:
        return ScalingDecision(_bounded(replicas, config), "no demand has been measured yet", 0.0)
    demand, forecast = history[-1].demand, forecast_demand(history, config)
    needed = forecast / config.utilisation
    upscaled = math.ceil(needed - config.slack)
    if upscaled > replicas:
        step_limit = max(replicas + 1, math.floor(config.max_growth_factor * replicas))
        rising = forecast > demand * RISE_THRESHOLD
        forecast_text = f" with a forecast of {forecast:.2f}" if rising else ""
        reason = f"demand {demand:.2f}{forecast_text} needs {needed:.2f} replicas"
        return ScalingDecision(_bounded(min(upscaled, step_limit), config), reason, needed)
    window_start = history[-1].at - config.downscale_delay_s
    peak = max(sample.demand for sample in history if sample.at > window_start) / config.utilisation
    downscaled = max(math.ceil(peak), upscaled)
    if downscaled >= replicas:
        return ScalingDecision(_bounded(replicas, config), f"{needed:.2f} replicas are needed", needed)
    if history[0].at > window_start:
        reason = "no replica is removed: the history is shorter than the downscale delay"
        return ScalingDecision(_bounded(replicas, config), reason, needed)
    reason = f"at most {peak:.2f} replicas were needed within the downscale delay"
    return ScalingDecision(_bounded(downscaled, config), reason, needed)


def forecast_demand(history: Sequence[DemandSample], config: ScalingConfig) -> float:
    """The demand at the time when a replica that is started now would serve.

    A rising trend is extrapolated, a falling one is not. The trend is the smaller of two: the slope over the
    last two start-up times, and the median rise of the newest samples. Therefore a single jump is no trend.
    """
    now = history[-1]
    slope = min(
        _slope(history, now.at - 2 * config.replica_startup_s), _median_rise(history[-TREND_SAMPLES:])
    )
    growth = max(0.0, slope) * config.replica_startup_s
    return now.demand + min(growth, config.max_forecast_growth * now.demand)


def _median_rise(samples: Sequence[DemandSample]) -> float:
    """Demand per second: the median rise from sample to sample."""
    rises = [(b.demand - a.demand) / (b.at - a.at) for a, b in itertools.pairwise(samples) if b.at > a.at]
    return statistics.median(rises) if rises else 0.0


def _slope(history: Sequence[DemandSample], since: float) -> float:
    """Demand per second by least squares, times the share of the variance that the line explains (R²).

    The factor removes the slope of noise.
    """
    recent = [sample for sample in history if sample.at >= since]
    if len(recent) < 3:
        return 0.0
    mean_at = sum(sample.at for sample in recent) / len(recent)
    mean_demand = sum(sample.demand for sample in recent) / len(recent)
    at_squares = sum((sample.at - mean_at) ** 2 for sample in recent)
    demand_squares = sum((sample.demand - mean_demand) ** 2 for sample in recent)
    if not at_squares or not demand_squares:
        return 0.0
    slope = sum((sample.at - mean_at) * (sample.demand - mean_demand) for sample in recent) / at_squares
    return slope * (slope**2 * at_squares / demand_squares)


def _bounded(replicas: int, config: ScalingConfig) -> int:
    return min(config.max_replicas, max(config.min_replicas, replicas))
