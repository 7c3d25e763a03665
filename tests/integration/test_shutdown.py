"""A server process that is stopped while it works, and one whose forward does not end."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from foveate.gateway.server import SAME_SIGNAL_S
from tests.e2e.serving import free_port
from tests.support.command_server import TIMEOUT_S, CommandServer, serving_commands

pytestmark = pytest.mark.anyio
JPEG = {"content-type": "image/jpeg"}
NEVER = b"sleep 1000"


async def post(
    client: httpx.AsyncClient,
    body: bytes | AsyncIterator[bytes] = b"image",
    model: str = "fake",
    **headers: str,
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post("/classify", params={"model": model}, content=body, headers=JPEG | named)


async def until_status(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """The first response with this status."""
    async with asyncio.timeout(TIMEOUT_S):
        while (response := await client.get(path)).status_code != status:
            await asyncio.sleep(0.05)
    return response


async def running(client: httpx.AsyncClient) -> None:
    """Return once a batch runs."""
    async with asyncio.timeout(TIMEOUT_S):
        while 'foveate_running{model="fake"} 1.0' not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.02)


async def exit_code(server: CommandServer) -> int:
    return await asyncio.to_thread(server.process.wait, TIMEOUT_S)


def assert_one_reason(server: CommandServer, words: str) -> None:
    """The log says once why the process ends, and has no traceback."""
    lines = server.lines()
    assert sum("with status 1" in line and words in line for line in lines) == 1, lines
    assert not any("Traceback" in line for line in lines), lines


async def test_sigterm_ends_a_server_whose_forward_hangs_after_its_client_left(tmp_path: Path) -> None:
    with serving_commands(tmp_path, free_port(), "fake", drain_timeout_s=2) as server:
        async with server.client() as client:
            leaving = asyncio.create_task(post(client, NEVER))
            await running(client)
            leaving.cancel()
            await asyncio.sleep(0.3)
            began = server.sigterm()
        assert await exit_code(server) == 1
        print(f"sigterm_hung_forward_exit_s {time.monotonic() - began:.2f}")
        assert_one_reason(server, "a batch of 1 for fake under fake@32/fp32 has been running")


async def test_a_drain_waits_for_a_forward_whose_client_left(tmp_path: Path) -> None:
    with serving_commands(tmp_path, free_port(), "fake", drain_timeout_s=30) as server:
        async with server.client() as client:
            leaving = asyncio.create_task(post(client, b"sleep 2"))
            await running(client)
            leaving.cancel()
            await asyncio.sleep(0.3)
            server.sigterm()
        assert await exit_code(server) == 0


async def test_a_second_sigterm_ends_the_server_at_once(tmp_path: Path) -> None:
    with serving_commands(tmp_path, free_port(), "fake", drain_timeout_s=300) as server:
        async with server.client() as client:
            stuck = asyncio.create_task(post(client, NEVER))
            await running(client)
            server.sigterm()
            await until_status(client, "/readyz", 503)
            await asyncio.sleep(SAME_SIGNAL_S)
            server.sigterm()
            assert (await stuck).status_code == 503
        assert await exit_code(server) == 1
        assert not any("Traceback" in line for line in server.lines()), server.lines()


async def slowly(body: bytes, seconds: float) -> AsyncIterator[bytes]:
    """The body, byte by byte."""
    for byte in body:
        yield bytes([byte])
        await asyncio.sleep(seconds / len(body))


@pytest.mark.parametrize("cluster", ["local", "ray"])
async def test_sigterm_finishes_all_requests_that_are_read_queued_or_running(
    tmp_path: Path, cluster: str
) -> None:
    """A steady stream, half of it with bodies that take three seconds; the forward takes 20 ms."""
    sent: list[tuple[float, asyncio.Task[httpx.Response]]] = []
    if cluster == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    options = {"drain_timeout_s": 40, "cluster": cluster, "replica_cpus": 0.1, "gateway_cpus": 0.1}
    with serving_commands(tmp_path, free_port(), "fake", **options) as server:
        async with server.client() as client:
            for number in range(60):
                body = slowly(b"sleep 0.020", 3.0) if number % 2 else b"sleep 0.020"
                sent.append((time.monotonic(), asyncio.create_task(post(client, body))))
                await asyncio.sleep(1 / 30)
            await asyncio.sleep(0.5)  # on a busy machine the server reads the last heads late
            signalled, unfinished = server.sigterm(), [task for _, task in sent if not task.done()]
            await until_status(client, "/readyz", 503)
            late = await post(client)
            answers = await asyncio.gather(*unfinished, return_exceptions=True)
        statuses = [getattr(answer, "status_code", repr(answer)) for answer in answers]
        print(f"sigterm_inflight_ok_share {statuses.count(200) / len(statuses):.3f} of {len(statuses)}")
        assert len(statuses) >= 8, "requests were in flight at the signal"
        assert set(statuses) == {200}
        assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
        assert all(task.result().status_code == 200 for began, task in sent if began < signalled)
        assert await exit_code(server) == 0


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_a_hanging_forward_makes_the_server_unready_and_then_not_alive(tmp_path: Path) -> None:
    """Two models on one device; the forward of one never ends."""
    options = {"hang_timeout_s": 1, "hang_restart_s": 4, "drain_timeout_s": 30}
    with serving_commands(tmp_path, free_port(), "fake", "other", **options) as server:
        async with server.client() as client:
            assert (await post(client, model="other")).status_code == 200
            hanging = asyncio.create_task(post(client, NEVER))
            await running(client)
            began = time.monotonic()
            waiting = [asyncio.create_task(post(client, model=model)) for model in ("fake", "other")]
            reason = (await until_status(client, "/readyz", 503)).json()
            print(f"readyz_false_after_hang_s {time.monotonic() - began:.2f} with hang_timeout_s 1")
            assert reason["status"] == "hanging" and "for fake under fake@32/fp32" in reason["reason"]
            assert (await client.get("/livez")).status_code == 200
            waiting += [
                asyncio.create_task(post(client, model=m, x_slo_ms="60000")) for m in ("fake", "other")
            ]
            for response in await asyncio.gather(*waiting):
                assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
                assert response.json()["title"] == "Device does not respond"
            late = await post(client, model="other", x_slo_ms="1")
            assert late.status_code in (503, 504)
            assert not hanging.done()
            assert (await until_status(client, "/livez", 503)).json()["status"] == "failed"
            assert (await hanging).status_code == 500
            assert await metric(client, 'foveate_hangs_total{model="fake",rung="full"}') == 1
            assert await metric(client, 'foveate_hanging{model="fake"}') == 1
            assert await metric(client, "foveate_requests_total") == 7
            stopped = server.sigterm()
        assert await exit_code(server) == 1
        assert time.monotonic() - stopped < 20, "a drain does not wait for a forward that was given up"
        assert_one_reason(server, "for fake under fake@32/fp32")


async def test_a_slow_forward_that_ends_makes_the_server_ready_again(tmp_path: Path) -> None:
    options = {"hang_timeout_s": 1, "hang_restart_s": 60}
    with serving_commands(tmp_path, free_port(), "fake", **options) as server:
        async with server.client() as client:
            slow = asyncio.create_task(post(client, b"sleep 3"))
            await running(client)
            await until_status(client, "/readyz", 503)
            assert (await slow).status_code == 200
            await until_status(client, "/readyz", 200)
            assert (await post(client)).status_code == 200
            assert await metric(client, "foveate_hanging{") == 0
            server.sigterm()
        assert await exit_code(server) == 0


async def test_on_ray_requests_behind_a_hang_run_on_another_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")
    options = {"cluster": "ray", "replicas": 2, "replica_cpus": 0.1, "gateway_cpus": 0.1}
    options |= {"hang_timeout_s": 3, "hang_restart_s": 12, "drain_timeout_s": 5}
    with serving_commands(tmp_path, free_port(), "fake", **options) as server:
        async with server.client() as client:
            hanging = asyncio.create_task(post(client, NEVER))
            await asyncio.sleep(1)  # it is alone in its batch
            statuses: list[int] = []
            async with asyncio.timeout(TIMEOUT_S):
                while not hanging.done():  # the first requests may wait behind the forward until it hangs
                    statuses += [
                        r.status_code for r in await asyncio.gather(*(post(client) for _ in range(4)))
                    ]
                    await asyncio.sleep(0.1)
            assert (await hanging).status_code == 500
            assert len(statuses) > 20 and set(statuses) == {200}
            server.sigterm()
        await exit_code(server)
