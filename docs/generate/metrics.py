"""The metrics page: one row per metric that the server and the autoscaler export."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from docs.generate.markdown import code, prose, table
from foveate.autoscaler.service import Autoscaler
from foveate.core.metrics import Metrics

_INTRO = """\
# Metrics

After reading this page you know every metric that `GET /metrics` exports, with its type, labels and
meaning. All names start with `foveate_`. Durations are in seconds, sizes in bytes, ratios are plain
numbers. Histograms export `_bucket`, `_count` and `_sum` series; the bucket edges are listed here. Each
label has a small, fixed set of values: no metric is labelled with a request id, a tenant or a replica.

This page is generated from the definitions in `core/foveate/core/metrics.py` and in the autoscaler. Rules,
alerts and a dashboard over these metrics are in the folder `monitoring`.

"""
_AUTOSCALER = """\
## Autoscaler

`foveate autoscaler` exports these on its own port, for KEDA or a HorizontalPodAutoscaler to read.

"""


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported metric."""

    name: str
    """As Prometheus sees it, with `_total` for counters."""
    kind: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()
    """Upper edges, without the infinite one."""


def page() -> str:
    """The whole page as Markdown."""
    exported = list(metrics_of(Metrics().registry))
    unused = cast("Any", None)  # the constructor only stores its arguments
    header = ("Metric", "Labels", "Meaning")
    histograms = [
        (*_row(metric), code(" ".join(f"{edge:g}" for edge in metric.buckets)))
        for metric in exported
        if metric.kind == "histogram"
    ]
    parts = [
        _INTRO,
        "## Counters\n\n",
        table(header, [_row(metric) for metric in exported if metric.kind == "counter"]),
        "## Gauges\n\n",
        table(header, [_row(metric) for metric in exported if metric.kind == "gauge"]),
        "## Histograms\n\n",
        table((*header, "Bucket edges"), histograms),
        _AUTOSCALER,
        table(header, map(_row, metrics_of(Autoscaler(unused, unused, 1.0).registry))),
    ]
    return "".join(parts)


def metrics_of(registry: CollectorRegistry) -> Iterator[Metric]:
    """The metrics of a registry, in the order of their definition. Raises ValueError for one without help."""
    for collector in dict.fromkeys(registry._collector_to_names):
        if not isinstance(collector, MetricWrapperBase):
            continue
        (family,) = collector.describe()
        meaning = prose(family.documentation)
        if not meaning:
            raise ValueError(f"the metric {family.name} has no help text; say what it counts")
        name = f"{family.name}_total" if isinstance(collector, Counter) else family.name
        edges = tuple(collector._upper_bounds[:-1]) if isinstance(collector, Histogram) else ()
        yield Metric(name, family.type, tuple(collector._labelnames), meaning, edges)


def _row(metric: Metric) -> tuple[str, str, str]:
    return code(metric.name), ", ".join(map(code, metric.labels)) or "none", metric.meaning
