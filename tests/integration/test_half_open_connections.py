"""A server that may open 1,024 files, while clients hold 1,100 connections without a complete request."""

import asyncio
import multiprocessing
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import server
from tests.integration.conftest import TIMEOUT_S, listen
from tests.support.fake_runner import FakeRunner

pytestmark = pytest.mark.anyio

SERVER_FILES, HALF_OPEN, REQUESTS = 1024, 1100, 25
STARTS = {
    "head": b"POST /classify HTTP/1.1\r\nhost: x\r\nx-a: ",
    "nothing": b"",
    "idle": b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
}
"""What the clients send, and then nothing more."""


def serve_with_few_files(listening: socket.socket) -> None:
    """The child process: the server with a fake model."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (SERVER_FILES, SERVER_FILES))
    metrics, settings = Metrics(), Settings(cache_bytes=0)
    cluster = LocalCluster([FakeRunner], metrics)
    server(create_app(cluster, settings, metrics), cluster, settings).run([listening])


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server in a process of its own. This process may open all files that it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < HALF_OPEN + 500 and hard != resource.RLIM_INFINITY:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, HALF_OPEN + 500)), hard))
    listening = listen()
    process = multiprocessing.get_context("spawn").Process(target=serve_with_few_files, args=(listening,))
    process.start()
    port: int = listening.getsockname()[1]
    listening.close()
    yield port
    process.terminate()
    process.join(TIMEOUT_S)
    process.kill()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def new_client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, trust_env=False)


async def hold(port: int, start: bytes, opened: asyncio.Semaphore) -> None:
    """Hold a connection without a complete request, and open another one each time it is closed."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(start)
                opened.release()
                while await reader.read(4096):
                    pass
            finally:
                writer.close()
        await asyncio.sleep(0.5)


async def probe(client: httpx.AsyncClient, path: str) -> httpx.Response:
    """Ask again, as clients do, if the connection was closed to make room before the request was seen."""
    with suppress(httpx.RemoteProtocolError):
        return await client.get(path)
    return await client.get(path)


@pytest.mark.parametrize("kind", STARTS)
async def test_requests_and_probes_are_answered(port: int, kind: str) -> None:
    opened, sent, failures = asyncio.Semaphore(0), 0, list[str]()
    async with new_client(port) as kept:
        assert (await kept.get("/livez")).status_code == 200
        holders = [asyncio.create_task(hold(port, STARTS[kind], opened)) for _ in range(HALF_OPEN)]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for _ in range(HALF_OPEN):
                    await opened.acquire()
            for _ in range(REQUESTS):
                async with new_client(port) as fresh:
                    for client in (fresh, kept):
                        for path in ("/livez", "/readyz", "/metrics"):
                            assert (await probe(client, path)).status_code == 200
                        sent += 1
                        headers = {"content-type": "image/jpeg"}
                        try:
                            response = await client.post("/classify", content=b"image", headers=headers)
                        except httpx.HTTPError as error:
                            failures.append(f"{sent}, {client is kept}: {error!r}")
                        else:
                            if response.status_code != 200:
                                failures.append(f"{sent}, {client is kept}: {response.text}")
        finally:
            for holder in holders:
                holder.cancel()
            await asyncio.gather(*holders, return_exceptions=True)
    print(f"slowloris_normal_ok_share {1 - len(failures) / sent:.3f} ({kind}, {sent} requests)")
    assert not failures
