"""The scaling policy as Ray Serve asks it: fed by what the workers themselves report."""

from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol

from foveate.autoscaler.policy import DemandSample, ScalingConfig, desired_replicas
from foveate.core.metrics import Metrics

DEMAND = "full_quality_demand"
"""Under this name workers report it: replicas that would be busy, were each request served at full."""


class AutoscalingContext(Protocol):
    """What is used of ray.serve.config.AutoscalingContext."""

    target_num_replicas: int
    policy_state: dict[str, Any]
    current_time: float | None

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Any]] | None: ...


class FullQualityDemandPolicy:
    """`autoscaling_config.policy` of a deployment: `policy_kwargs` are the rules, by their names."""

    def __init__(self, **rules: float) -> None:
        self.rules = ScalingConfig(**rules)  # type: ignore[arg-type]

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and what to remember of it."""
        reported = (context.raw_metrics or {}).get(DEMAND, {})
        now = monotonic() if context.current_time is None else context.current_time
        history, told = [DemandSample(*seen) for seen in context.policy_state.get("history", ())], None
        if reported:
            # Serve asks ten times a second, and workers report now and then: the same again is no news.
            told = max(when(series) for series in reported.values())
            if told == context.policy_state.get("told"):
                history = history[:-1]
            history.append(DemandSample(now, sum(last(series) for series in reported.values())))
        horizon_s = 2 * max(self.rules.downscale_delay_s, self.rules.replica_startup_s)
        history = [seen for seen in history if seen.at > now - horizon_s]
        decision = desired_replicas(history, context.target_num_replicas, self.rules)
        remembered = [(seen.at, seen.demand) for seen in history]
        return decision.replicas, {"history": remembered, "told": told, "reason": decision.reason}


def when(series: Any) -> float:
    """The time of the newest of a replica's values."""
    return float(series[-1].timestamp) if len(series) else 0.0


def last(series: Any) -> float:
    """The newest of a replica's values, which come with their times."""
    return float(series[-1].value) if len(series) else 0.0


class DemandMeter:
    """What a worker reports: its own share of the demand since it last did."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._at, self._seconds = monotonic(), 0.0

    def read(self) -> float:
        """Replicas that what came since the last reading takes at full."""
        now = monotonic()
        seconds = sum(
            sample.value
            for metric in self.metrics.demand.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        rate = (seconds - self._seconds) / max(1e-3, now - self._at)
        self._at, self._seconds = now, seconds
        return rate
