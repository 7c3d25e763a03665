"""`foveate serve --cluster ray`, and the same application for `serve deploy` and KubeRay.

The gateway is the ingress deployment. Each model is a deployment of its own behind it.
"""

import logging
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
from foveate.cluster.ray.transport import CALL_ERRORS, RayTransport, direct
from foveate.cluster.remote import RemoteCluster
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings, read_settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.cli import model_loader
from foveate.gateway.cli.installed_models import with_installed_models
from foveate.gateway.http_server.protocol import BoundedHttp
from foveate.gateway.limits import AdmissionLimiter

log = logging.getLogger(__name__)

NAME = "foveate"
"""The name of the Ray Serve application."""
GATEWAY, METRICS = "gateway", "metrics"
"""The names of the deployments that are not models."""
DRAIN_CALL_S = 5.0
"""Seconds that the call which drains the gateways may take, in addition to the drain time-out."""
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
        self.settings, self.metrics = settings, Metrics(settings.class_deadlines_s)
        self.reporter = MetricsReporter(aggregator, self.metrics)
        self.cluster = await RemoteCluster.connect(
            [RayTransport(handle) for handle in models], HostLoadMonitor(settings.decode_threads)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self.reporter.start()
        app = create_app(self.cluster, self.settings, self.metrics, collect_metrics=self.reporter.collect_all)
        app.add_middleware(StripRequestId)
        self.limiter: AdmissionLimiter = app.state.limiter
        return app

    async def drain(self) -> None:
        """Refuse new requests, and return once the accepted ones have their answers, or at the time-out.

        Serve stops all deployments of an application at once. Without a drain of the gateways before that, a
        request that is still read or decoded would reach no worker.
        """
        self.cluster.begin_drain()
        await self.limiter.wait_empty(self.settings.drain_timeout_s)

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
    return application(with_reserved_threads(with_installed_models(read_settings(args))))


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


def drain_gateways(timeout_s: float, drained: threading.Event) -> None:
    """Drain all gateways, and set `drained` when they have drained or cannot be reached."""

    try:
        handle: Any = ray_serve.get_deployment_handle(GATEWAY, NAME)
        handle._init(_run_router_in_separate_loop=True)  # this process has no event loop
        direct(handle).broadcast("drain").results(timeout_s=timeout_s + DRAIN_CALL_S)
    except (*CALL_ERRORS, RuntimeError, TimeoutError):
        log.warning("the gateways could not be drained before the end", exc_info=True)
    finally:
        drained.set()


def serve(
    settings: Settings,
    tell: Callable[[str], None],
    factories: Sequence[RunnerFactory] | None = None,
) -> None:
    """Serve until a signal arrives. Then finish the accepted requests and take the application down.

    A second signal does not wait for the requests.

    tell: prints the address. factories: as for `application`. Raises SetupError.
    """
    stopping, drained, deployed = threading.Event(), threading.Event(), False

    def stop(number: int, *_: object) -> None:
        if stopping.is_set() and not settings.ray_address:
            os._exit(1)  # a second signal; Ray's processes end with this one
        if stopping.is_set():
            drained.set()
        stopping.set()
        if not deployed:
            raise SystemExit(128 + number)

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
        exit_after(2 * settings.drain_timeout_s + TEARDOWN_TIMEOUT_S)
        threading.Thread(target=drain_gateways, args=(settings.drain_timeout_s, drained), daemon=True).start()
        drained.wait()
        ray_serve.delete(NAME)
    finally:
        if not settings.ray_address:
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
