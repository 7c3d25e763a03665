"""The metrics of several processes add up as if they were one's."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from foveate.cluster import metrics_aggregator as module
from foveate.cluster.metrics_aggregator import AggregatedCollector, MetricsAggregator, snapshot
from foveate.core.metrics import Metrics

ANSWERED = ("foveate_requests_total", (("model", "m"), ("outcome", "ok"), ("task", "classify")))
WAITING = ("foveate_waiting", (("model", "m"),))


class Process:
    """One that counts and reports."""

    def __init__(self, name: str, ledger: MetricsAggregator) -> None:
        self.name, self.ledger, self.metrics, self.number = name, ledger, Metrics(), 0

    def answers(self, count: int) -> "Process":
        self.metrics.requests.labels("m", "classify", "ok").inc(count)
        return self

    def reports(self) -> None:
        self.number += 1
        self.ledger.report(self.name, self.number, snapshot(self.metrics.registry))


def sample(ledger: MetricsAggregator, key: tuple[str, tuple[tuple[str, str], ...]]) -> float | None:
    return next((family.samples[key] for family in ledger.collect() if key in family.samples), None)


def test_counters_add_up_whoever_reports_how_often() -> None:
    ledger = MetricsAggregator()
    one, other = Process("one", ledger), Process("other", ledger)
    for process in (one, other):
        process.reports()
    one.answers(3).reports()
    one.reports()
    other.answers(4).reports()
    one.answers(1).reports()
    assert sample(ledger, ANSWERED) == 8


def test_a_report_that_comes_late_counts_nothing_twice() -> None:
    ledger = MetricsAggregator()
    process = Process("one", ledger)
    process.reports()
    first = snapshot(process.answers(5).metrics.registry)
    process.number += 1
    process.answers(5).reports()
    ledger.report("one", 2, first)
    process.reports()
    assert sample(ledger, ANSWERED) == 10


def test_what_a_process_counted_stays_when_it_is_gone() -> None:
    ledger = MetricsAggregator()
    for name in ("one", "its successor"):
        process = Process(name, ledger)
        process.reports()
        process.answers(5).reports()
    assert sample(ledger, ANSWERED) == 10


def test_a_ledger_that_starts_anew_begins_at_nothing() -> None:
    old = MetricsAggregator()
    process = Process("one", old)
    process.reports()
    process.answers(1000).reports()
    process.ledger = new = MetricsAggregator()
    process.reports()
    assert sample(new, ANSWERED) == 0, "a rate over it would take 1000 for an increase"
    process.answers(2).reports()
    assert sample(new, ANSWERED) == 2


def test_gauges_are_the_sum_of_those_who_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    ledger = MetricsAggregator()
    for name, waiting in (("one", 2), ("other", 3)):
        process = Process(name, ledger)
        process.metrics.waiting.labels("m").set(waiting)
        process.reports()
    assert sample(ledger, WAITING) == 5
    now[0] += module.SILENT_S / 2
    process.reports()
    now[0] += module.SILENT_S / 2 + 1
    assert sample(ledger, WAITING) == 3, "the first has told nothing for too long"


def test_it_reads_as_one_process_would_tell_it() -> None:
    ledger = MetricsAggregator()
    for name in ("one", "other"):
        process = Process(name, ledger)
        process.reports()
        process.answers(2).metrics.duration.labels("m", "classify").observe(0.03)
        process.reports()
    told = {
        sample.name: sample.value
        for family in text_string_to_metric_families(
            generate_latest(AggregatedCollector(ledger.collect())).decode()
        )
        for sample in family.samples
        if sample.labels.get("model") == "m" and sample.labels.get("le", "+Inf") == "+Inf"
    }
    assert told["foveate_requests_total"] == 4
    assert told["foveate_request_duration_seconds_count"] == 2
    assert told["foveate_request_duration_seconds_sum"] == pytest.approx(0.06)
    assert told["foveate_request_duration_seconds_bucket"] == 2
