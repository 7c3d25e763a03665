"""Metrics of all processes of a Ray application: each process reports its own to one aggregator."""

import asyncio
import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentHandle

from foveate.cluster.envelope import WorkerLost
from foveate.cluster.metrics_aggregator import REPORT_INTERVAL_S, MetricsAggregator, MetricSnapshot, snapshot
from foveate.cluster.ray.transport import CALL_ERRORS, direct, replica_name
from foveate.core.metrics import Metrics

AGGREGATOR_TIMEOUT_S = 2.0
"""Seconds until a call to the aggregator counts as failed."""


class MetricsAggregatorDeployment:
    """Ray Serve deployment with one replica, which sums the metrics of all processes."""

    def __init__(self) -> None:
        self.aggregator = MetricsAggregator()

    async def report(self, process: str, number: int, metrics: Sequence[MetricSnapshot]) -> None:
        """Take the metrics of one process. The parameters are those of `MetricsAggregator.report`."""
        self.aggregator.report(process, number, metrics)

    async def exchange(
        self, process: str, number: int, metrics: Sequence[MetricSnapshot]
    ) -> Sequence[MetricSnapshot]:
        """Take the metrics of one process, and return the sums over all processes."""
        self.aggregator.report(process, number, metrics)
        return self.aggregator.collect()


class MetricsReporter:
    """Reports the metrics of this process to the aggregator at a fixed interval."""

    def __init__(self, aggregator: DeploymentHandle[Any], metrics: Metrics) -> None:
        self.metrics, self.process = metrics, f"{replica_name()}-{os.getpid()}"
        self._aggregator, self._numbers = direct(aggregator), itertools.count()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start reporting, on the event loop of the caller."""
        self._task = asyncio.create_task(self._report_forever(), name="reporter")

    def stop(self) -> None:
        """Stop reporting."""
        if self._task is not None:
            self._task.cancel()

    async def report(self) -> None:
        """Report once. A failure is ignored: the next report contains the same counts."""
        # A call to a deployment without a replica waits for one. At shutdown there will be none.
        with suppress(*CALL_ERRORS, TimeoutError):
            async with asyncio.timeout(AGGREGATOR_TIMEOUT_S):
                await self._aggregator.report.remote(*self._next_report())

    async def collect_all(self) -> Sequence[MetricSnapshot]:
        """The sums over all processes. Raises WorkerLost if the aggregator does not answer."""
        try:
            async with asyncio.timeout(AGGREGATOR_TIMEOUT_S):
                sums: Sequence[MetricSnapshot] = await self._aggregator.exchange.remote(*self._next_report())
        except (*CALL_ERRORS, TimeoutError) as error:
            raise WorkerLost("the metrics aggregator does not answer; retry later") from error
        return sums

    def _next_report(self) -> tuple[str, int, Sequence[MetricSnapshot]]:
        return self.process, next(self._numbers), snapshot(self.metrics.registry)

    async def _report_forever(self) -> None:
        while True:
            await self.report()
            await asyncio.sleep(REPORT_INTERVAL_S)
