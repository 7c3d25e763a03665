"""Reports of metrics to the aggregator of a Ray application."""

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

from ray.exceptions import RayActorError

from foveate.cluster.envelope import WorkerLost
from foveate.cluster.metrics_aggregator import MetricSnapshot
from foveate.cluster.ray import metrics as ray_metrics
from foveate.cluster.ray.metrics import MetricsAggregatorDeployment, MetricsReporter
from foveate.core.metrics import Metrics
from tests.support.ray_handles import LocalHandle

pytestmark = pytest.mark.anyio


def reporter(monkeypatch: pytest.MonkeyPatch, replica: str, handle: LocalHandle) -> MetricsReporter:
    """The reporter of a process; its first report is the baseline of its counters."""
    monkeypatch.setattr(ray_metrics, "replica_name", lambda: replica)
    stand_in: Any = handle
    return MetricsReporter(stand_in, Metrics())


def refuse(process: MetricsReporter, requests: int) -> None:
    process.metrics.refused.labels("fake", "deadline").inc(requests)


def refused(sums: Sequence[MetricSnapshot]) -> float:
    (metric,) = [metric for metric in sums if metric.name == "foveate_refused"]
    return sum(metric.samples.values())


async def test_one_process_sees_the_sums_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = LocalHandle(MetricsAggregatorDeployment())
    one, other = reporter(monkeypatch, "one", handle), reporter(monkeypatch, "other", handle)
    for process in (one, other):
        await process.report()
    refuse(one, 3)
    assert refused(await one.collect_all()) == 3
    refuse(other, 4)
    await other.report()
    await other.report()
    assert refused(await one.collect_all()) == 7


async def test_a_lost_aggregator_fails_collection_but_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = LocalHandle(MetricsAggregatorDeployment(), RayActorError())
    lonely = reporter(monkeypatch, "lonely", handle)
    await lonely.report()
    with pytest.raises(WorkerLost, match="aggregator does not answer"):
        await lonely.collect_all()
