"""Sums the metrics of several processes. The counts of processes that have ended stay in the sums."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

REPORT_INTERVAL_S = 1.0
"""Seconds between two reports of a process."""
GAUGE_TTL_S = 10.0
"""Gauges of a process that is silent for this long leave the sums: the process has ended."""
PROCESS_TTL_S = 3600.0
"""The last report of a process that is silent for this long is deleted. Its counts stay in the sums."""
MAX_GAUGES = frozenset({"foveate_oldest_wait_seconds"})
"""Gauges of which the largest value of all processes counts, and not the sum."""
SampleKey = tuple[str, tuple[tuple[str, str], ...]]
"""The name and the sorted labels of a sample."""
Samples = dict[SampleKey, float]


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """One metric of one process at one time, or a sum of such metrics."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    documentation: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class _LastReport:
    """The last report of one process."""

    number: int
    at: float
    samples: dict[str, Samples]
    """By name of the metric."""


def snapshot(registry: CollectorRegistry) -> tuple[MetricSnapshot, ...]:
    """All metrics of a registry, in a form that can be pickled. Creation times are left out."""
    return tuple(
        MetricSnapshot(
            metric.name,
            metric.type,
            metric.documentation,
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for sample in metric.samples
                if not sample.name.endswith("_created")
            },
        )
        for metric in registry.collect()
    )


class MetricsAggregator:
    """Sums the reports of several processes.

    The value that a counter has in the first report of its process is left out. Therefore a new aggregator
    starts at 0, as every restarted counter does, and does not count anything a second time.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, MetricSnapshot] = {}
        self._last: dict[str, _LastReport] = {}
        self._sums: dict[str, Samples] = {}

    def report(self, process: str, number: int, metrics: Sequence[MetricSnapshot]) -> None:
        """Take all metrics of a process.

        number: increases with each report of the process. A report that arrives after a later one is ignored.
        """
        last = self._last.get(process)
        if last is not None and number <= last.number:
            return
        for metric in metrics:
            self._metrics[metric.name] = metric
            if metric.kind == "gauge":
                continue
            sums = self._sums.setdefault(metric.name, {})
            before = metric.samples if last is None else last.samples.get(metric.name, {})
            for key, value in metric.samples.items():
                sums[key] = sums.get(key, 0.0) + max(0.0, value - before.get(key, 0.0))
        samples = {metric.name: dict(metric.samples) for metric in metrics}
        self._last[process] = _LastReport(number, monotonic(), samples)

    def collect(self) -> tuple[MetricSnapshot, ...]:
        """The sums: counters and histograms of all processes, gauges of the processes that still report.

        Of the gauges in MAX_GAUGES, the largest value takes the place of the sum.
        """
        now = monotonic()
        for process in [name for name, last in self._last.items() if now - last.at > PROCESS_TTL_S]:
            del self._last[process]
        alive = [last.samples for last in self._last.values() if now - last.at <= GAUGE_TTL_S]
        return tuple(self._sum(metric, alive) for metric in self._metrics.values())

    def _sum(self, metric: MetricSnapshot, alive: Sequence[dict[str, Samples]]) -> MetricSnapshot:
        sums = self._sums.get(metric.name, {})
        if metric.kind == "gauge":
            sums = {}
            for samples in alive:
                for key, value in samples.get(metric.name, {}).items():
                    known = sums.get(key, 0.0)
                    sums[key] = max(known, value) if metric.name in MAX_GAUGES else known + value
        return MetricSnapshot(metric.name, metric.kind, metric.documentation, dict(sums))


class AggregatedCollector(Collector):
    """Gives snapshots to prometheus_client, which writes them in its exposition format."""

    def __init__(self, metrics: Iterable[MetricSnapshot]) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The metrics as prometheus_client has them."""
        for summed in self.metrics:
            metric = Metric(summed.name, summed.documentation, summed.kind)
            metric.samples = [
                Sample(name, dict(labels), value) for (name, labels), value in summed.samples.items()
            ]
            yield metric
