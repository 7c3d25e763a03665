"""Workers on Ray Serve: it places, watches, replaces and upgrades them. Who waits, waits in the engine:
Serve's own queues and batches know no deadlines, so that all calls are let through at once."""

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from grpc import RpcError
from ray import serve
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from foveate.cluster.envelope import RequestBatch, ResponseBatch, WorkerLost
from foveate.cluster.local import LocalCluster
from foveate.cluster.metrics_aggregator import REPORT_S, MetricsAggregator, MetricSnapshot, snapshot
from foveate.cluster.ray.scaling import DEMAND, DemandMeter
from foveate.cluster.worker import Worker
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.settings import Settings
from foveate.engine.runner import Runner
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy

log = logging.getLogger(__name__)

LEDGER_S = 2.0
"""Until the ledger has answered, or does not."""
MANY = 100_000
"""Calls at once that Serve lets through to a replica: the bounds are the engine's and the gateway's."""

Make = Callable[[], Runner]


class ModelDeployment:
    """One model, and what comes with it. A replica is one worker: an engine in a process of its own."""

    async def __init__(  # type: ignore[misc]
        self, make: Make, settings: Settings, ledger: DeploymentHandle[Any]
    ) -> None:
        self.metrics = Metrics()
        policy = SloPolicy if settings.policy == "slo" else Fifo
        # Off the event loop: loading takes long, and Serve asks meanwhile how it goes.
        cluster = await asyncio.to_thread(
            LocalCluster, [make], self.metrics, settings.queue_items, settings.queue_bytes, policy,
            settings.default_deadline_s,
        )  # fmt: skip
        await cluster.start()
        self.worker = Worker(cluster, name_of_replica())
        self.demand = DemandMeter(self.metrics)
        self._reporter = MetricsReporter(ledger, self.metrics)
        self._reporter.start()

    async def cards(self) -> Sequence[ModelCard]:
        return self.worker.cards()

    async def answer(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        async for answers in self.worker.answer(group):
            yield answers

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        self.worker.cancel(sender, numbers)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for the scaling policy."""
        return {DEMAND: self.demand.read()}

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a worker that cannot answer any more."""
        if self.worker.cluster.failed:
            raise RuntimeError("an engine has failed")

    async def __del__(self) -> None:
        """At the end, when Serve has seen the last call out."""
        self._reporter.stop()
        await self._reporter.report()
        await self.worker.cluster.close()


class MetricsAggregatorDeployment:
    """The one place where all processes' metrics add up."""

    def __init__(self) -> None:
        self.ledger = MetricsAggregator()

    async def report(self, process: str, number: int, families: Sequence[MetricSnapshot]) -> None:
        self.ledger.report(process, number, families)

    async def exchange(
        self, process: str, number: int, families: Sequence[MetricSnapshot]
    ) -> Sequence[MetricSnapshot]:
        """Report, and get the sums of all."""
        self.ledger.report(process, number, families)
        return self.ledger.collect()


class MetricsReporter:
    """Tells the ledger, again and again, what this process has counted."""

    def __init__(self, ledger: DeploymentHandle[Any], metrics: Metrics) -> None:
        self.metrics, self.process = metrics, f"{name_of_replica()}-{os.getpid()}"
        self._ledger, self._numbers = direct(ledger), itertools.count()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._go_on(), name="reporter")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def report(self) -> None:
        # A call to a deployment without a replica waits for one, and at the end there will be none.
        with suppress(*LOST, TimeoutError):
            async with asyncio.timeout(LEDGER_S):
                await self._ledger.report.remote(*self._told())

    async def all(self) -> Sequence[MetricSnapshot]:
        """Of all processes. Raises WorkerLost where the ledger does not answer."""
        try:
            async with asyncio.timeout(LEDGER_S):
                told: Sequence[MetricSnapshot] = await self._ledger.exchange.remote(*self._told())
        except (*LOST, TimeoutError) as error:
            raise WorkerLost("the metrics of the other processes cannot be had now") from error
        return told

    def _told(self) -> tuple[str, int, Sequence[MetricSnapshot]]:
        return self.process, next(self._numbers), snapshot(self.metrics.registry)

    async def _go_on(self) -> None:
        while True:
            await self.report()
            await asyncio.sleep(REPORT_S)


LOST = (RayError, RayServeException, RpcError, CancelledError)
"""What a call to a replica that is gone, or going, ends in."""


class RayTransport:
    """A way to one deployment's replicas, past Serve's proxies."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = direct(handle)
        self._streams = self._handle.options(stream=True)

    async def cards(self) -> Sequence[ModelCard]:
        found: Sequence[ModelCard] = await self._handle.cards.remote()
        return found

    async def send(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        try:
            stream: Any = self._streams.answer.remote(group)
            async for answers in stream:
                yield answers
        except TaskCancelledError as error:
            raise WorkerLost("the worker was stopped before it answered") from error
        except LOST as error:
            raise WorkerLost("the worker was lost before it answered") from error

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        with suppress(*LOST, TimeoutError):
            await self._handle.broadcast("forget", sender, list(numbers)).results_async(timeout_s=5)


def direct(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """The same, its calls straight to the replica over gRPC and not through Ray's object store."""
    return handle.options(
        _by_reference=False, request_serialization="pickle", response_serialization="pickle"
    )


def name_of_replica() -> str:
    return serve.get_replica_context().replica_id.unique_id


def options_of(settings: Settings) -> dict[str, Any]:
    """How Serve is to run a model's replicas."""
    found: dict[str, Any] = {
        "max_ongoing_requests": MANY,
        "ray_actor_options": {
            "num_cpus": settings.replica_cpus,
            "num_gpus": settings.replica_gpus,
            "resources": dict(settings.replica_resources),
        },
        # What has been admitted is finished first, as on any shutdown.
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
    }
    if settings.max_replicas <= settings.replicas:
        return found | {"num_replicas": settings.replicas}
    rules = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "utilisation": settings.scale_utilisation,
        "replica_startup_s": settings.scale_replica_startup_s,
        "downscale_delay_s": settings.scale_downscale_delay_s,
    }
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "initial_replicas": settings.replicas,
        # The policy sees to calm and to haste itself.
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {
            "policy_function": "foveate.cluster.ray.scaling:FullQualityDemandPolicy",
            "policy_kwargs": rules,
        },
    }
    return found | {"autoscaling_config": scaling}
