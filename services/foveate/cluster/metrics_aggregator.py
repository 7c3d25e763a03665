"""The metrics of several processes as one: counters add up, also those of processes that are gone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

REPORT_S = 1.0
"""How often a process tells what it has counted."""
SILENT_S = 10.0
"""Gauges of a process that has told nothing for so long are no more: it is gone."""

GONE_S = 3600.0
"""What one of which nothing is heard for so long had last told is forgotten; its counts stay."""
Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """What one process knows of one metric."""

    name: str
    kind: str
    documentation: str
    samples: dict[Key, float]


def snapshot(registry: CollectorRegistry) -> tuple[MetricSnapshot, ...]:
    """All that a registry holds, as it may travel."""
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
    """Sums what processes report. What a counter had before its process was first heard of is left out, so
    that a ledger that starts anew does not count twice: like any counter that does, it begins at 0."""

    def __init__(self) -> None:
        self._families: dict[str, MetricSnapshot] = {}
        self._last: dict[str, tuple[dict[str, dict[Key, float]], float]] = {}
        self._sums: dict[str, dict[Key, float]] = {}
        self._numbers: dict[str, int] = {}

    def report(self, process: str, number: int, families: Sequence[MetricSnapshot]) -> None:
        """All that a process has counted since it began. `number`: of its reports; one that comes late, after
        a later one, is out of date."""
        if number <= self._numbers.get(process, -1):
            return
        self._numbers[process] = number
        last, _ = self._last.get(process, (None, 0.0))
        for family in families:
            self._families[family.name] = family
            if family.kind == "gauge":
                continue
            sums = self._sums.setdefault(family.name, {})
            before = family.samples if last is None else last.get(family.name, {})
            for key, value in family.samples.items():
                sums[key] = sums.get(key, 0.0) + max(0.0, value - before.get(key, 0.0))
        self._last[process] = {family.name: dict(family.samples) for family in families}, monotonic()

    def collect(self) -> tuple[MetricSnapshot, ...]:
        """All of it, as if it were one process."""
        now = monotonic()
        for process in [name for name, (_, at) in self._last.items() if now - at > GONE_S]:
            del self._last[process], self._numbers[process]
        alive = [samples for samples, at in self._last.values() if now - at <= SILENT_S]
        return tuple(self._summed(family, alive) for family in self._families.values())

    def _summed(self, family: MetricSnapshot, alive: Sequence[dict[str, dict[Key, float]]]) -> MetricSnapshot:
        sums = self._sums.get(family.name, {})
        if family.kind == "gauge":
            sums = {}
            for samples in alive:
                for key, value in samples.get(family.name, {}).items():
                    sums[key] = sums.get(key, 0.0) + value
        return MetricSnapshot(family.name, family.kind, family.documentation, dict(sums))


class AggregatedCollector(Collector):
    """Families as prometheus_client writes them."""

    def __init__(self, families: Iterable[MetricSnapshot]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        for family in self.families:
            metric = Metric(family.name, family.documentation, family.kind)
            metric.samples = [
                Sample(name, dict(labels), value) for (name, labels), value in family.samples.items()
            ]
            yield metric
