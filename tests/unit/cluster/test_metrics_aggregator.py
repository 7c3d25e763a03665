"""The metrics of several processes add up as if one process had counted all of them."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from foveate.cluster import metrics_aggregator as module
from foveate.cluster.metrics_aggregator import (
    MAX_GAUGES,
    AggregatedCollector,
    MetricsAggregator,
    SampleKey,
    snapshot,
)
from foveate.core.metrics import Metrics

ANSWERED = ("foveate_requests_total", (("model", "m"), ("outcome", "ok"), ("task", "classify")))
WAITING = ("foveate_waiting", (("model", "m"),))


class ReportingProcess:
    """Counts requests and reports its metrics."""

    def __init__(self, name: str, aggregator: MetricsAggregator) -> None:
        self.name, self.aggregator, self.metrics, self.number = name, aggregator, Metrics(), 0

    def count(self, requests: int) -> "ReportingProcess":
        self.metrics.requests.labels("m", "classify", "ok").inc(requests)
        return self

    def report(self) -> None:
        self.number += 1
        self.aggregator.report(self.name, self.number, snapshot(self.metrics.registry))


def sample(aggregator: MetricsAggregator, key: SampleKey) -> float | None:
    return next((metric.samples[key] for metric in aggregator.collect() if key in metric.samples), None)


def test_counters_add_up_however_often_each_process_reports() -> None:
    aggregator = MetricsAggregator()
    one, other = ReportingProcess("one", aggregator), ReportingProcess("other", aggregator)
    for process in (one, other):
        process.report()
    one.count(3).report()
    one.report()
    other.count(4).report()
    one.count(1).report()
    assert sample(aggregator, ANSWERED) == 8


def test_a_late_report_is_ignored() -> None:
    aggregator = MetricsAggregator()
    process = ReportingProcess("one", aggregator)
    process.report()
    late = snapshot(process.count(5).metrics.registry)
    process.number += 1
    process.count(5).report()
    aggregator.report("one", 2, late)
    process.report()
    assert sample(aggregator, ANSWERED) == 10


def test_counts_stay_after_their_process_has_ended() -> None:
    aggregator = MetricsAggregator()
    for name in ("one", "its successor"):
        process = ReportingProcess(name, aggregator)
        process.report()
        process.count(5).report()
    assert sample(aggregator, ANSWERED) == 10


def test_counts_stay_after_a_process_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    aggregator = MetricsAggregator()
    process = ReportingProcess("one", aggregator)
    process.report()
    process.count(5).report()
    now[0] += module.PROCESS_TTL_S + 1
    assert sample(aggregator, ANSWERED) == 5
    process.report()
    assert sample(aggregator, ANSWERED) == 5, "its first report after that adds nothing"


def test_a_new_aggregator_starts_at_zero() -> None:
    old = MetricsAggregator()
    process = ReportingProcess("one", old)
    process.report()
    process.count(1000).report()
    process.aggregator = new = MetricsAggregator()
    process.report()
    assert sample(new, ANSWERED) == 0, "a rate over it would take 1000 for an increase"
    process.count(2).report()
    assert sample(new, ANSWERED) == 2


def test_gauges_are_the_sum_over_the_processes_that_still_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    aggregator = MetricsAggregator()
    for name, waiting in (("one", 2), ("other", 3)):
        process = ReportingProcess(name, aggregator)
        process.metrics.waiting.labels("m").set(waiting)
        process.report()
    assert sample(aggregator, WAITING) == 5
    now[0] += module.GAUGE_TTL_S / 2
    process.report()
    now[0] += module.GAUGE_TTL_S / 2 + 1
    assert sample(aggregator, WAITING) == 3, "the first process has been silent for too long"


def test_the_sums_are_written_as_the_metrics_of_one_process() -> None:
    aggregator = MetricsAggregator()
    for name in ("one", "other"):
        process = ReportingProcess(name, aggregator)
        process.report()
        process.count(2).metrics.duration.labels("m", "classify").observe(0.03)
        process.report()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(
            generate_latest(AggregatedCollector(aggregator.collect())).decode()
        )
        for sample in family.samples
        if sample.labels.get("model") == "m" and sample.labels.get("le", "+Inf") == "+Inf"
    }
    assert values["foveate_requests_total"] == 4
    assert values["foveate_request_duration_seconds_count"] == 2
    assert values["foveate_request_duration_seconds_sum"] == pytest.approx(0.06)
    assert values["foveate_request_duration_seconds_bucket"] == 2


def test_of_the_longest_waits_the_longest_counts() -> None:
    assert {
        gauge for gauge in MAX_GAUGES if gauge not in {m.name for m in snapshot(Metrics().registry)}
    } == set()
    aggregator = MetricsAggregator()
    for name, seconds in (("one", 2.0), ("other", 3.0), ("third", 1.0)):
        process = ReportingProcess(name, aggregator)
        process.metrics.oldest_wait.labels("m").set(seconds)
        process.report()
    assert sample(aggregator, ("foveate_oldest_wait_seconds", (("model", "m"),))) == 3
