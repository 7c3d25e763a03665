"""The bench of faults on a real server: normal requests, half heads, a hung forward, SIGTERM."""

from contextlib import ExitStack

import pytest

from loadtests.faults import process, shutdown
from loadtests.faults.connections import normal_ok_share, open_half_heads
from loadtests.faults.memory import burst
from loadtests.faults.process import post, running, status


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(process, "RUNS", tmp_path)


@pytest.mark.usefixtures("runs")
def test_a_server_is_measured_from_outside() -> None:
    with running(shutdown.HANGING, shutdown.ENVIRONMENT) as server:
        assert server.ready_s > 0
        assert 0 < server.ready_cpu_s <= server.cpu_s()
        assert 10 < server.memory_mb() <= server.memory_mb("VmHWM")
        server.wait_warm()
        assert post(server, "/classify", b"image", "image/jpeg") == 200
        assert status(server, "/nothing") == 404
        assert burst(server, pictures=1) == 0.0, "it has no model that segments"
        with ExitStack() as stack:
            open_half_heads(server, 20, stack)
            assert normal_ok_share(server, 5) == 1.0
        assert shutdown.inflight_ok_share(server, rate=20, before_s=0.5) == 1.0
        assert server.exit_s(30) < 30


@pytest.mark.usefixtures("runs")
def test_a_forward_hangs() -> None:
    with running(shutdown.HANGING, {"FOVEATE_DRAIN_TIMEOUT_S": "0"}) as server:
        shutdown.hang(server)
        assert post(server, "/classify", b"image", "image/jpeg", 1) != 200
        assert 0 < shutdown.not_ready_after_s(server, 1.0) <= 1.5
        server.process.kill()
    assert server.process.returncode is not None
