"""The Ray Serve deployment of one model. Ray places, supervises, replaces and upgrades its replicas.

Requests wait in the engine, not in Serve: Serve's queues and batches know no deadlines. Therefore Serve lets
all calls through at once.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from foveate.cluster.envelope import ChatEnvelope, ChatEventBatch, RequestBatch, ResponseBatch
from foveate.cluster.local import LocalCluster
from foveate.cluster.ray.metrics import MetricsReporter
from foveate.cluster.ray.scaling import DEMAND_METRIC, DemandMeter, FullQualityDemandPolicy
from foveate.cluster.ray.transport import replica_name
from foveate.cluster.worker import Worker
from foveate.core.heap import limit_heap
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.settings import Settings
from foveate.engine.chat.runner import ChatModel
from foveate.engine.hang import HangLimits
from foveate.engine.runner import Runner
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy

MAX_ONGOING_REQUESTS = 100_000
"""Calls that Serve lets through to a replica at once. The engine and the gateway have the real bounds."""

RunnerFactory = Callable[[], Runner | ChatModel]


class ModelDeployment:
    """One model with its submodels. A replica is one worker: engines in a process of their own."""

    async def __init__(  # type: ignore[misc]
        self, factory: RunnerFactory, settings: Settings, aggregator: DeploymentHandle[Any]
    ) -> None:
        limit_heap()
        self.metrics = Metrics(settings.class_deadlines_s)
        policy = SloPolicy if settings.policy == "slo" else Fifo
        # Loading takes long. It runs in a thread so that the event loop can answer Serve meanwhile.
        cluster = await asyncio.to_thread(
            LocalCluster, [factory], self.metrics, settings.queue_items, settings.queue_bytes, policy,
            settings.default_deadline_s,
            hang_limits=HangLimits(settings.hang_timeout_s, settings.hang_restart_s),
            chat_feature_bytes=settings.chat_feature_bytes, chat_prefix_bytes=settings.chat_prefix_bytes,
        )  # fmt: skip
        await cluster.start()
        self.worker = Worker(cluster, replica_name())
        self.demand = DemandMeter(self.metrics)
        self._reporter = MetricsReporter(aggregator, self.metrics)
        self._reporter.start()

    async def cards(self) -> Sequence[ModelCard]:
        """The served models; the model of the deployment comes first."""
        return self.worker.cards()

    async def run(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        """Run the requests and yield their responses as they are ready."""
        async for response_batch in self.worker.run(request_batch):
            yield response_batch

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        """Answer a chat and yield its events as they are ready."""
        async for events in self.worker.chat(envelope):
            yield events

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Cancel requests and chats of a sender."""
        self.worker.cancel(sender, numbers)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: the demand since the last call, for the scaling policy."""
        return {DEMAND_METRIC: self.demand.read()}

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises RuntimeError."""
        if self.worker.cluster.failed:
            raise RuntimeError(self.worker.cluster.problem)

    async def __del__(self) -> None:
        """Called by Serve at shutdown, after the last call has ended."""
        self._reporter.stop()
        await self._reporter.report()
        await self.worker.cluster.close()


def deployment_options(settings: Settings) -> dict[str, Any]:
    """The Serve options of a model deployment: resources, shutdown, health checks, number of replicas."""
    options: dict[str, Any] = {
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {
            "num_cpus": settings.replica_cpus,
            "num_gpus": settings.replica_gpus,
            "resources": dict(settings.replica_resources),
        },
        # Admitted requests are finished first, as on any shutdown.
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
    }
    if settings.max_replicas <= settings.replicas:
        return options | {"num_replicas": settings.replicas}
    return options | {"autoscaling_config": _autoscaling_options(settings)}


def _autoscaling_options(settings: Settings) -> dict[str, Any]:
    return {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "initial_replicas": settings.replicas,
        # The policy has its own delays.
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {
            "policy_function": f"{FullQualityDemandPolicy.__module__}:{FullQualityDemandPolicy.__name__}",
            "policy_kwargs": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.max_replicas,
                "utilisation": settings.scale_utilisation,
                "replica_startup_s": settings.scale_replica_startup_s,
                "downscale_delay_s": settings.scale_downscale_delay_s,
            },
        },
    }
