"""The server: it drains on the first signal, and stops at once on the second."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import SAME_SIGNAL_S, DrainingServer, freeze_gc_heap, server
from tests.support.fake_runner import FakeRunner

pytestmark = pytest.mark.anyio
JPEG = {"content-type": "image/jpeg"}


@dataclass
class Running:
    """A running server, its runner and a client."""

    server: DrainingServer
    serving: asyncio.Task[None]
    runner: FakeRunner
    client: httpx.AsyncClient

    async def post(self) -> httpx.Response:
        return await self.client.post("/classify", content=b"image", headers=JPEG)

    async def blocked_request(self) -> asyncio.Task[httpx.Response]:
        """A request in a forward that waits for `runner.gate`."""
        self.runner.gate.clear()
        posted = asyncio.create_task(self.post())
        assert await asyncio.to_thread(self.runner.entered.acquire, timeout=20)
        return posted


@asynccontextmanager
async def running(drain_timeout_s: float = 20.0) -> AsyncIterator[Running]:
    settings = Settings(port=0, drain_timeout_s=drain_timeout_s, cache_bytes=0)
    metrics, runner = Metrics(), FakeRunner()
    cluster = LocalCluster([lambda: runner], metrics)
    serve = server(create_app(cluster, settings, metrics), cluster, settings)
    serving = asyncio.create_task(serve.serve())
    while not serve.started:
        await asyncio.sleep(0.01)
    port = serve.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield Running(serve, serving, runner, client)
    finally:
        runner.gate.set()
        serve.should_exit = True
        await asyncio.wait_for(serving, 20)


async def test_the_first_signal_finishes_admitted_requests_and_refuses_new_ones() -> None:
    async with running() as here:
        admitted = await here.blocked_request()
        here.server.handle_exit(signal.SIGTERM, None)
        while (await here.client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.01)
        refused = await here.post()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        here.runner.gate.set()
        assert (await admitted).status_code == 200
        await asyncio.wait_for(here.serving, 20)
        assert here.server.finished


async def test_after_the_drain_timeout_the_remaining_requests_get_503() -> None:
    async with running(drain_timeout_s=0.05) as here:
        admitted = await here.blocked_request()
        here.server.handle_exit(signal.SIGTERM, None)
        assert (await admitted).status_code == 503
        assert not here.server.finished


async def test_the_second_signal_stops_at_once() -> None:
    async with running() as here:
        admitted = await here.blocked_request()
        here.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(SAME_SIGNAL_S + 0.05)
        here.server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(here.serving, 10)
        assert here.server.force_exit
        assert not here.server.finished
        admitted.cancel()


async def test_a_signal_that_arrives_twice_at_once_is_one_signal() -> None:
    """`timeout` and task runners pass on a signal that the terminal has sent to the server already."""
    async with running() as here:
        admitted = await here.blocked_request()
        for _ in range(2):
            here.server.handle_exit(signal.SIGINT, None)
            await asyncio.sleep(0.01)
        here.runner.gate.set()
        assert (await admitted).status_code == 200
        await asyncio.wait_for(here.serving, 10)
        assert here.server.finished and not here.server.force_exit


async def test_an_idle_server_stops_at_the_first_signal() -> None:
    async with running() as here:
        assert (await here.post()).status_code == 200
        here.server.handle_exit(signal.SIGINT, None)
        await asyncio.wait_for(here.serving, 10)
        assert here.server.finished


def test_freezing_the_heap_takes_its_objects_out_of_collections() -> None:
    try:
        freeze_gc_heap()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


async def test_a_request_whose_body_still_arrives_is_answered_during_the_drain() -> None:
    signalled = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"im"
        await signalled.wait()
        yield b"age"

    async with running() as here:
        sending = asyncio.create_task(here.client.post("/classify", content=body(), headers=JPEG))
        while not here.server.limiter.items:
            await asyncio.sleep(0.01)
        here.server.handle_exit(signal.SIGTERM, None)
        while (await here.client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await here.post()).status_code == 503
        signalled.set()
        assert (await sending).status_code == 200
        await asyncio.wait_for(here.serving, 20)
        assert here.server.finished


async def test_a_drain_that_does_not_finish_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async with running(drain_timeout_s=0.05) as here:
        admitted = await here.blocked_request()
        admitted.cancel()  # the client leaves, and the forward goes on
        while here.server.limiter.items:
            await asyncio.sleep(0.01)
        here.server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(here.serving, 20)
        assert not here.server.finished
    (reason,) = (record.getMessage() for record in caplog.records if "status 1" in record.getMessage())
    assert "a batch of 1 for fake under" in reason
