"""Reads demand from Prometheus, publishes how many replicas there should be; KEDA or an HPA does the rest."""

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

DEMAND = "sum(rate(foveate_full_quality_seconds_total[1m]))"
REPLICAS = 'count(up{job="foveate"} == 1)'


@dataclass(frozen=True, slots=True)
class Queries:
    """What Prometheus is asked; each answer is one number."""

    demand: str = DEMAND
    """Full-quality demand, in replicas that are busy all the time."""
    replicas: str = REPLICAS
    """Replicas that are there."""


def publish(registry: CollectorRegistry, host: str, port: int) -> int:
    """Serve a registry over HTTP, from a thread. Returns the port. Raises SetupError where it is taken."""
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise SetupError(f"cannot publish on {host}:{port}: {error.strerror}") from None
    return int(server.server_port)


class Autoscaler:
    """The scaling policy, fed with what Prometheus has. Its decisions are metrics of its own."""

    def __init__(
        self,
        prometheus: PrometheusClient,
        rules: ScalingConfig,
        interval_s: float,
        questions: Queries | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.prometheus, self.rules, self.interval_s = prometheus, rules, interval_s
        self.questions, self.clock = questions or Queries(), clock
        self.registry = CollectorRegistry()
        self.decision: ScalingDecision | None = None
        self._seen: deque[DemandSample] = deque()
        self._desired = Gauge(
            "foveate_autoscaler_desired_replicas", "Replicas there should be.", registry=self.registry
        )
        self._needed = Gauge(
            "foveate_autoscaler_needed_replicas",
            "What full quality takes before it is rounded and bounded.",
            registry=self.registry,
        )
        self._demand = Gauge(
            "foveate_autoscaler_demand_replicas", "Full-quality demand as last seen.", registry=self.registry
        )
        self._failures = Counter(
            "foveate_autoscaler_failures",
            "Times that Prometheus could not be asked; the last decision stands.",
            registry=self.registry,
        )

    def step(self) -> ScalingDecision | None:
        """Look once and decide; None, and the last decision stands, where nothing could be seen."""
        try:
            now = self.clock()
            if not self._seen:  # what was seen before this process was there counts too
                self._seen.extend(self._before(now))
            demand = self.prometheus.now(self.questions.demand)
            replicas = self.prometheus.now(self.questions.replicas)
        except PrometheusError as error:
            log.warning("%s", error)
            self._failures.inc()
            return None
        if demand is None or replicas is None:
            what = "demand" if demand is None else "replicas"
            log.warning("Prometheus knows nothing of %s yet", what)
            self._failures.inc()
            return None
        self._seen.append(DemandSample(now, demand))
        span_s = max(self.rules.downscale_delay_s, 2 * self.rules.replica_startup_s) + 2 * self.interval_s
        while self._seen[0].at < now - span_s:
            self._seen.popleft()
        # Those that were asked for and are not there yet are on their way.
        there = round(replicas)
        asked = self.decision.replicas if self.decision else there
        self.decision = desired_replicas(tuple(self._seen), max(there, asked), self.rules)
        self._desired.set(self.decision.replicas)
        self._needed.set(self.decision.needed)
        self._demand.set(demand)
        return self.decision

    def _before(self, now: float) -> list[DemandSample]:
        seen = self.prometheus.lately(
            self.questions.demand, self.rules.downscale_delay_s, self.interval_s, now
        )
        return [one for one in seen if one.at < now]
