"""Starting Ray: reservations, and an address without a Ray."""

import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

from foveate.core.errors import SetupError
from foveate.core.settings import Settings
from foveate.gateway.cli import ray_cluster
from foveate.gateway.cli.ray_cluster import (
    PORT_BLOCKS,
    check_reachable,
    ingress_ports,
    own_process_group,
    reserved_cpus,
    start,
)
from tests.e2e.serving import free_port


def test_the_environment_is_set_before_ray_is_imported() -> None:
    code = (
        "from foveate.gateway.cli import ray_cluster; from ray.serve._private import constants; "
        "assert constants.RAY_SERVE_THROUGHPUT_OPTIMIZED; "
        "assert constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT in range(20_000, 30_000)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_servers_on_one_machine_choose_different_ports_for_their_gateways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "PORT_BLOCKS", PORT_BLOCKS[:2])
    first = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as the gateway of another server does
        other.bind(("127.0.0.1", PORT_BLOCKS[0]))
        other.listen()
        assert {ingress_ports()[first] for _ in range(20)} == {str(PORT_BLOCKS[1])}


def test_all_ports_of_a_server_are_its_own() -> None:
    """The fallback proxies too: on one port, each would answer requests of the other servers."""
    ports = {name.removeprefix("RAY_SERVE_"): int(port) for name, port in ingress_ports().items()}
    names = ("DIRECT_INGRESS_MIN_{}_PORT", "DIRECT_INGRESS_MAX_{}_PORT", "FALLBACK_PROXY_{}_PORT")
    own = {"HTTP": "HAPROXY_STATS_PORT", "GRPC": "HAPROXY_METRICS_PORT"}
    in_order = [
        ports[name.format(protocol)] for protocol in ("HTTP", "GRPC") for name in (*names, own[protocol])
    ]
    assert in_order == sorted(set(in_order))
    assert set(in_order) == set(ports.values())
    assert in_order[0] in PORT_BLOCKS
    assert in_order[-1] - in_order[0] < PORT_BLOCKS.step


def test_replicas_reserve_the_cpus_of_the_settings() -> None:
    settings = Settings(models=("a", "b"), replicas=1, max_replicas=3, gateways=2, replica_cpus=2)
    assert reserved_cpus(settings) == 2 * settings.gateway_cpus + 2 * 3 * 2


def test_an_address_without_a_ray_is_refused_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(SetupError, match=f"there is no Ray at {address}"):
        start(Settings(ray_address=address, cluster="ray"))


def test_a_reachable_address_is_accepted_with_or_without_a_scheme() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_reachable(f"127.0.0.1:{port}")
        check_reachable(f"ray://127.0.0.1:{port}")
    check_reachable("auto")


def test_the_process_returns_to_its_own_group() -> None:
    before = os.getpgrp()
    with own_process_group():
        pass
    assert os.getpgrp() == before
