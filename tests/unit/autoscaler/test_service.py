"""The autoscaler: decisions from Prometheus' values, published as metrics, and steps without values."""

import urllib.request
from collections.abc import Iterator

import pytest

from foveate.autoscaler.policy import ScalingConfig
from foveate.autoscaler.prometheus import PrometheusClient
from foveate.autoscaler.service import Autoscaler, Queries, publish
from foveate.core.errors import SetupError
from tests.support.prometheus_api import PrometheusApi, prometheus_api

CONFIG = ScalingConfig(1, 9, utilisation=0.5, replica_startup_s=10, downscale_delay_s=60)


@pytest.fixture
def api() -> Iterator[PrometheusApi]:
    with prometheus_api() as running:
        yield running


class SteppedAutoscaler:
    """An autoscaler on a virtual clock, a step every five seconds, with two replicas that serve."""

    def __init__(self, api: PrometheusApi) -> None:
        self.api, self.now = api, 1000.0
        self.autoscaler = Autoscaler(
            PrometheusClient(api.url), CONFIG, 5.0, Queries("demand", "replicas"), lambda: self.now
        )
        api.set_range("demand")
        api.set_value("replicas", 2)

    def step(self, demand: float) -> int | None:
        """The desired replicas at this demand."""
        self.api.set_value("demand", demand)
        self.now += 5
        decision = self.autoscaler.step()
        return None if decision is None else decision.replicas

    def metric(self, name: str) -> float | None:
        return self.autoscaler.registry.get_sample_value(f"foveate_autoscaler_{name}")


def test_decisions_are_published_as_metrics(api: PrometheusApi) -> None:
    stepped = SteppedAutoscaler(api)
    assert [stepped.step(0.9) for _ in range(3)] == [2, 2, 2]
    assert stepped.metric("desired_replicas") == 2
    assert stepped.metric("needed_replicas") == pytest.approx(1.8)
    assert stepped.metric("demand_replicas") == 0.9
    assert stepped.metric("failures_total") == 0


def test_replicas_that_were_asked_for_count_before_they_serve() -> None:
    with prometheus_api() as api:
        stepped = SteppedAutoscaler(api)
        assert stepped.step(2.0) == 4
        assert stepped.step(2.0) == 4, "the two new replicas are starting"


def test_demand_from_before_the_start_counts(api: PrometheusApi) -> None:
    stepped = SteppedAutoscaler(api)
    api.set_value("replicas", 6)
    api.set_range("demand", *((float(at), 0.4) for at in range(940, 1001, 5)))
    assert stepped.step(0.4) == 1, "the history covers the downscale delay"
    assert len(stepped.autoscaler.history) > 10


def test_samples_beyond_the_span_of_the_policy_are_dropped(api: PrometheusApi) -> None:
    stepped = SteppedAutoscaler(api)
    for _ in range(60):
        stepped.step(0.4)
    first, last = stepped.autoscaler.history[0], stepped.autoscaler.history[-1]
    assert last.at - first.at == CONFIG.downscale_delay_s + 2 * 5


def test_the_last_decision_stays_when_prometheus_has_no_value(
    api: PrometheusApi, caplog: pytest.LogCaptureFixture
) -> None:
    stepped = SteppedAutoscaler(api)
    assert stepped.step(2.0) == 4
    del api.bodies["query", "demand"]
    assert stepped.autoscaler.step() is None
    api.set_result("demand")
    assert stepped.autoscaler.step() is None
    assert "no value yet for the query demand" in caplog.text
    assert stepped.metric("failures_total") == 2
    assert stepped.metric("desired_replicas") == 4


def test_a_registry_is_served_on_a_port_that_is_free() -> None:
    autoscaler = Autoscaler(PrometheusClient("http://127.0.0.1:1"), CONFIG, 5.0)
    port = publish(autoscaler.registry, "127.0.0.1", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert b"foveate_autoscaler_desired_replicas" in response.read()
    with pytest.raises(SetupError, match="cannot publish"):
        publish(autoscaler.registry, "127.0.0.1", port)
