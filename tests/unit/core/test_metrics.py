"""Metrics: names, units, closed labels and separate registries."""

import pytest
from prometheus_client import Counter, Gauge, Histogram, generate_latest

from foveate.core.metrics import Metrics
from foveate.core.settings import Settings, SloClass

FORBIDDEN_LABELS = {"id", "request", "request_id", "tenant", "path", "replica"}
ALL = {name: metric for name, metric in vars(Metrics()).items() if name != "registry"}


@pytest.mark.parametrize("name", ALL)
def test_names_and_labels_follow_the_conventions(name: str) -> None:
    metric = ALL[name]
    assert isinstance(metric, Counter | Gauge | Histogram)
    (family,) = metric.describe()
    assert family.name.startswith("foveate_")
    assert family.documentation.endswith(".")
    assert len(metric._labelnames) <= 3
    assert not FORBIDDEN_LABELS & set(metric._labelnames)


def test_names_are_unique() -> None:
    names = [family.name for metric in ALL.values() for family in metric.describe()]
    assert len(set(names)) == len(names)


def test_the_deadlines_of_slo_classes_are_edges_of_latencies() -> None:
    classes = {"quick": SloClass(deadline_ms=150), "bulk": SloClass(priority=-1)}
    metrics = Metrics(Settings(slo_classes=classes).class_deadlines_s)
    metrics.first_token.labels("m").observe(0.12)
    metrics.duration.labels("m", "chat").observe(0.12)
    for name, labels in (
        ("request_duration", {"model": "m", "task": "chat"}),
        ("first_token", {"model": "m"}),
    ):
        bucket = f"foveate_{name}_seconds_bucket"
        assert metrics.registry.get_sample_value(bucket, {**labels, "le": "0.15"}) == 1
        assert metrics.registry.get_sample_value(bucket, {**labels, "le": "0.1"}) == 0
        assert metrics.registry.get_sample_value(bucket, {**labels, "le": "0.2"}) == 1


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.requests.labels("m", "classify", "ok").inc()
    assert b'foveate_requests_total{model="m",outcome="ok",task="classify"} 1.0' in generate_latest(
        first.registry
    )
    assert b"foveate_requests_total{" not in generate_latest(second.registry)


def test_the_renamed_metric_is_exported_under_both_names() -> None:
    metrics = Metrics()
    metrics.cache_errors.labels("timeout").inc()
    metrics.cache_trouble.labels("timeout").inc()
    text = generate_latest(metrics.registry).decode()
    for name in ("foveate_cache_errors_total", "foveate_cache_trouble_total"):
        assert f'{name}{{reason="timeout"}} 1.0' in text
