"""The scaling policy in the form that Ray Serve calls, with the demand that the workers report."""

from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol

from foveate.autoscaler.policy import DemandSample, ScalingConfig, desired_replicas
from foveate.core.metrics import Metrics

DEMAND_METRIC = "full_quality_demand"
"""The name of the reported value: replicas that would be busy if each request was served at full quality."""


class AutoscalingContext(Protocol):
    """The attributes of ray.serve.config.AutoscalingContext that the policy reads."""

    target_num_replicas: int
    policy_state: dict[str, Any]
    current_time: float | None

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Any]] | None:
        """By metric name and replica, a series of values with their times."""
        ...


class FullQualityDemandPolicy:
    """The `autoscaling_config.policy` of a deployment. `policy_kwargs` are the fields of ScalingConfig."""

    def __init__(self, **fields: float) -> None:
        """Raises ValueError, TypeError: the fields are not those of a ScalingConfig."""
        self.config = ScalingConfig(**fields)  # type: ignore[arg-type]

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and the state that Serve passes to the next call."""
        series_of = (context.raw_metrics or {}).get(DEMAND_METRIC, {})
        now = monotonic() if context.current_time is None else context.current_time
        state = context.policy_state
        history = [DemandSample(at, demand) for at, demand in state.get("history", ())]
        reported_at = None
        if series_of:
            # Serve calls ten times a second, but workers report less often. A report that the history has
            # already replaces the last sample.
            reported_at = max(latest_time(series) for series in series_of.values())
            if reported_at == state.get("reported_at"):
                history = history[:-1]
            history.append(DemandSample(now, sum(latest_value(series) for series in series_of.values())))
        horizon_s = 2 * max(self.config.downscale_delay_s, self.config.replica_startup_s)
        history = [sample for sample in history if sample.at > now - horizon_s]
        decision = desired_replicas(history, context.target_num_replicas, self.config)
        new_state = {
            "history": [(sample.at, sample.demand) for sample in history],
            "reported_at": reported_at,
            "reason": decision.reason,
        }
        return decision.replicas, new_state


def latest_time(series: Any) -> float:
    """The time of the newest value in a replica's series, in seconds; 0 for an empty series."""
    return float(series[-1].timestamp) if len(series) else 0.0


def latest_value(series: Any) -> float:
    """The newest value in a replica's series; 0 for an empty series."""
    return float(series[-1].value) if len(series) else 0.0


class DemandMeter:
    """Measures the demand of one worker between two readings."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._read_at, self._seconds = monotonic(), 0.0

    def read(self) -> float:
        """Full-quality demand since the last reading, in replicas that are busy all the time."""
        now = monotonic()
        seconds = sum(
            sample.value
            for metric in self.metrics.demand.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        rate = (seconds - self._seconds) / max(1e-3, now - self._read_at)
        self._read_at, self._seconds = now, seconds
        return rate
