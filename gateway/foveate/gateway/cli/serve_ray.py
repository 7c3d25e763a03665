"""`foveate serve --cluster ray`, and the same application for `serve deploy` and KubeRay.

The gateway is the ingress deployment. Each model is a deployment of its own behind it.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from foveate.gateway.cli import ray_cluster  # sets Ray's environment: must come before Ray

# isort: split
import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from foveate.cluster.ray.metrics import MetricsAggregatorDeployment, MetricsReporter
from foveate.cluster.ray.model_deployment import (
    MAX_ONGOING_REQUESTS,
    ModelDeployment,
    RunnerFactory,
    deployment_options,
)
from foveate.cluster.ray.transport import RayTransport
from foveate.cluster.remote import RemoteCluster
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.cli import model_loader
from foveate.gateway.http_server.protocol import BoundedHttp

NAME = "foveate"
"""The name of the Ray Serve application."""
GATEWAY, METRICS = "gateway", "metrics"
"""The names of the deployments that are not models."""
TEARDOWN_TIMEOUT_S = 60.0
"""Seconds to take the application down, in addition to the drain time-out of admitted requests."""
SERVE_DRAIN_S = 35.0
"""Seconds that Serve may take until a stopping gateway gets no more requests."""
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
"""Serve's logging: a log line for each call would cost more than the call."""


@ray_serve.ingress()
class GatewayDeployment:
    """The HTTP side: everything before and after the engine."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: Settings,
        aggregator: DeploymentHandle[Any],
        models: Sequence[DeploymentHandle[Any]],
    ) -> None:
        # Serve starts uvicorn with this name, once the gateway is made. HAProxy in front limits connections.
        HTTP_PROTOCOLS["auto"] = f"{BoundedHttp.__module__}:{BoundedHttp.__qualname__}"
        self.settings, self.metrics = settings, Metrics()
        self.reporter = MetricsReporter(aggregator, self.metrics)
        self.cluster = await RemoteCluster.connect(
            [RayTransport(handle) for handle in models], HostLoadMonitor(settings.decode_threads)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self.reporter.start()
        app = create_app(self.cluster, self.settings, self.metrics, collect_metrics=self.reporter.collect_all)
        app.add_middleware(StripRequestId)
        return app

    async def __del__(self) -> None:
        self.reporter.stop()
        await self.reporter.report()


class StripRequestId:
    """ASGI middleware that removes the x-request-id response header, because Serve adds the same header.

    Serve also generates the id if the client sent none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with the header removed."""

        async def send_stripped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await self.app(scope, receive, send_stripped)


def application(settings: Settings, factories: Sequence[RunnerFactory] | None = None) -> Any:
    """The Ray Serve application: the gateway, bound to its models.

    factories: create the runners, in place of the models that the settings name.
    """
    factories = factories or [partial(model_loader.load, name, settings) for name in settings.models]
    deployment: Any = ray_serve.deployment
    aggregator = deployment(
        MetricsAggregatorDeployment,
        name=METRICS,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    ).bind()
    models = [
        deployment(ModelDeployment, name=name, **deployment_options(settings)).bind(
            factory, settings, aggregator
        )
        for name, factory in zip(deployment_names(settings.models, len(factories)), factories, strict=True)
    ]
    gateway = deployment(
        GatewayDeployment,
        name=GATEWAY,
        num_replicas=settings.gateways,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={
            "num_cpus": settings.gateway_cpus,
            "resources": dict(settings.gateway_resources),
        },
        graceful_shutdown_timeout_s=settings.drain_timeout_s + SERVE_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return gateway.bind(settings, aggregator, models)


def build(args: dict[str, Any]) -> Any:
    """For `import_path: foveate.gateway.cli.serve_ray:build`; `args` override FOVEATE_* variables."""
    return application(with_reserved_threads(Settings(**args)))


def deployment_names(models: Sequence[str], count: int) -> list[str]:
    """A unique deployment name for each of `count` models, made of the characters that Ray allows."""
    names = [re.sub("[^A-Za-z0-9_-]+", "-", name).strip("-") or "model" for name in models[:count]]
    names += ["model"] * (count - len(names))
    taken = [GATEWAY, METRICS, *names]
    return [name if name not in taken[: at + 2] else f"{name}-{at}" for at, name in enumerate(names)]


def with_reserved_threads(settings: Settings) -> Settings:
    """The settings with as many threads for a forward as its replica reserves CPUs, unless they are set.

    Other replicas may run on the same machine.
    """
    threads = settings.threads or max(1, round(settings.replica_cpus))
    return settings.model_copy(update={"threads": threads})


def deploy(settings: Settings, factories: Sequence[RunnerFactory] | None = None) -> None:
    """Deploy the application, or upgrade the running one.

    An upgrade replaces the replicas one after the other, and no request is lost. Raises SetupError.
    """
    try:
        http = HTTPOptions(
            host=settings.host, port=settings.port, keep_alive_timeout_s=settings.keep_alive_timeout_s
        )
        ray_serve.start(http_options=http, logging_config=LOGGING)
        ray_serve.run(application(settings, factories), name=NAME, route_prefix="/", logging_config=LOGGING)
    except (RuntimeError, RayError) as error:
        raise SetupError(f"the server did not start on Ray: {failure_reason(error)}") from error


def failure_reason(error: Exception) -> str:
    """One sentence with the cause of a failed deployment, out of Ray's long messages."""
    messages = [str(error)]
    if ray.is_initialized():  # else the call would start a Ray
        with suppress(Exception):
            status = ray_serve.status().applications[NAME]
            messages += [status.message, *(deployment.message for deployment in status.deployments.values())]
    text = "\n".join(messages)
    for pattern in (r"SetupError: (.+)", r"(cannot bind socket .+?\]?)$", r"(\w+(?:Error|Exception): .+)"):
        if match := re.search(pattern, text, re.MULTILINE):
            return match[1]
    return str(error).strip().splitlines()[-1]


def exit_after(seconds: float) -> None:
    """Exit the process with status 1 after this time.

    If Ray's own processes were ended first, taking the application down would never end.
    """
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def serve(
    settings: Settings,
    tell: Callable[[str], None],
    factories: Sequence[RunnerFactory] | None = None,
) -> None:
    """Serve until a signal arrives. Then finish the admitted requests and take the application down.

    tell: prints the address. factories: as for `application`. Raises SetupError.
    """
    stopping, deployed = threading.Event(), False

    def stop(*_: object) -> None:
        stopping.set()
        if not deployed:
            raise SystemExit(1)

    ray_cluster.start(settings)
    if settings.ray_address:
        settings = with_reserved_threads(settings)
    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets handlers of its own
        signal.signal(number, stop)
    try:
        deploy(settings, factories)
        deployed = True
        tell(f"serving on http://{settings.host}:{settings.port}, on Ray")
        stopping.wait()
        exit_after(settings.drain_timeout_s + TEARDOWN_TIMEOUT_S)
        ray_serve.delete(NAME)
    finally:
        if not settings.ray_address:
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
