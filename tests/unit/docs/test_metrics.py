"""The metrics page shows metrics under the names that Prometheus sees."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from docs.generate.metrics import Metric, metrics_of, page
from foveate.core.metrics import Metrics


def test_metrics_have_exported_names_labels_and_buckets() -> None:
    registry = CollectorRegistry()
    Counter("app_requests", "Requests.", ("model",), registry=registry)
    Gauge("app_waiting", "Waiting | now.", registry=registry)
    Histogram("app_seconds", "Time.", buckets=(0.1, 1.0), registry=registry)
    assert list(metrics_of(registry)) == [
        Metric("app_requests_total", "counter", ("model",), "Requests."),
        Metric("app_waiting", "gauge", (), "Waiting &#124; now."),
        Metric("app_seconds", "histogram", (), "Time.", (0.1, 1.0)),
    ]


def test_metric_without_help_is_an_error_that_names_it() -> None:
    registry = CollectorRegistry()
    Counter("app_requests", " ", registry=registry)
    with pytest.raises(ValueError, match="app_requests has no help text"):
        list(metrics_of(registry))


def test_page_has_every_metric_of_the_server_and_of_the_autoscaler() -> None:
    text = page()
    exported = list(metrics_of(Metrics().registry))
    assert exported
    for metric in exported:
        assert f"| <code>{metric.name}</code> |" in text
    assert "| <code>foveate_autoscaler_desired_replicas</code> |" in text
