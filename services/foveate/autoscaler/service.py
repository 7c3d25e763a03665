"""Reads demand from Prometheus and publishes the desired number of replicas, for KEDA or an HPA to apply."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from foveate.autoscaler.policy import DemandSample, ScalingConfig, ScalingDecision, desired_replicas
from foveate.autoscaler.prometheus import PrometheusClient, PrometheusError
from foveate.core.errors import SetupError

log = logging.getLogger(__name__)

DEMAND_QUERY = "sum(rate(foveate_full_quality_seconds_total[1m]))"
REPLICAS_QUERY = 'count(up{job="foveate"} == 1)'


@dataclass(frozen=True, slots=True)
class Queries:
    """PromQL queries. The result of each is one number."""

    demand: str = DEMAND_QUERY
    """Full-quality demand, in replicas that are busy all the time."""
    replicas: str = REPLICAS_QUERY
    """Replicas that serve."""


def publish(registry: CollectorRegistry, host: str, port: int) -> int:
    """Serve a registry over HTTP from a thread, and return the port. Raises SetupError if it is in use."""
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise SetupError(f"cannot publish on {host}:{port}: {error.strerror}") from None
    return int(server.server_port)


class Autoscaler:
    """Applies the scaling policy to the demand in Prometheus, and publishes its decisions as metrics."""

    def __init__(
        self,
        prometheus: PrometheusClient,
        config: ScalingConfig,
        interval_s: float,
        queries: Queries | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """interval_s: seconds between two steps. clock: returns Unix time in seconds."""
        self.prometheus, self.config, self.interval_s = prometheus, config, interval_s
        self.queries, self.clock = queries or Queries(), clock
        self.registry = CollectorRegistry()
        self.decision: ScalingDecision | None = None
        """The last decision."""
        self.history: deque[DemandSample] = deque()
        self._desired = Gauge(
            "foveate_autoscaler_desired_replicas", "Desired number of replicas.", registry=self.registry
        )
        self._needed = Gauge(
            "foveate_autoscaler_needed_replicas",
            "Replicas that full quality needs, before rounding and bounds.",
            registry=self.registry,
        )
        self._demand = Gauge(
            "foveate_autoscaler_demand_replicas",
            "Full-quality demand at the last measurement, in replicas.",
            registry=self.registry,
        )
        self._failures = Counter(
            "foveate_autoscaler_failures",
            "Steps without an answer from Prometheus; the last decision stays in force.",
            registry=self.registry,
        )

    def step(self) -> ScalingDecision | None:
        """Measure and decide once. None without a measurement; the last decision then stays in force."""
        now = self.clock()
        measured = self._measure(now)
        if measured is None:
            self._failures.inc()
            return None
        demand, serving = measured
        self.history.append(DemandSample(now, demand))
        span_s = max(self.config.downscale_delay_s, 2 * self.config.replica_startup_s) + 2 * self.interval_s
        while self.history[0].at < now - span_s:
            self.history.popleft()
        # Replicas that an earlier decision asked for and that do not serve yet are starting.
        asked_for = self.decision.replicas if self.decision else serving
        self.decision = desired_replicas(tuple(self.history), max(serving, asked_for), self.config)
        self._desired.set(self.decision.replicas)
        self._needed.set(self.decision.needed)
        self._demand.set(demand)
        return self.decision

    def _measure(self, now: float) -> tuple[float, int] | None:
        """The demand and the number of serving replicas; None, and a warning, if either is unknown."""
        try:
            if not self.history:  # Prometheus has the demand from before this process started
                self.history.extend(self._earlier_samples(now))
            demand = self.prometheus.query_value(self.queries.demand)
            replicas = self.prometheus.query_value(self.queries.replicas)
        except PrometheusError as error:
            log.warning("%s", error)
            return None
        if demand is None or replicas is None:
            unknown = self.queries.demand if demand is None else self.queries.replicas
            log.warning("Prometheus has no value yet for the query %s", unknown)
            return None
        return demand, round(replicas)

    def _earlier_samples(self, now: float) -> list[DemandSample]:
        samples = self.prometheus.query_range(
            self.queries.demand, self.config.downscale_delay_s, self.interval_s, now
        )
        return [sample for sample in samples if sample.at < now]
