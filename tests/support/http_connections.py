"""A real server on a real port in the test's event loop, and connections on which a test writes bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.routing import BaseRoute

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import DrainingServer, server
from tests.support.fake_runner import FakeRunner

WAIT_S = 30


@dataclass(frozen=True)
class RawAnswer:
    """One answer as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes


class ByteConnection:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        """Send the pieces one by one; the server reads each on its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.02)

    async def answer(self) -> RawAnswer:
        """The next answer. Interim answers (status 1xx) count as answers."""
        async with asyncio.timeout(WAIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return RawAnswer(int(first.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """All bytes until the server closes the connection."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class ListeningServer:
    """A running server."""

    server: DrainingServer
    runner: FakeRunner
    port: int

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ByteConnection]:
        """A new connection."""
        connection = ByteConnection(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield connection
        finally:
            await connection.close()

    async def ask(self, *pieces: bytes) -> RawAnswer:
        """The first answer to these bytes on a new connection."""
        async with self.connect() as connection:
            await connection.send(*pieces)
            return await connection.answer()

    def client(self) -> httpx.AsyncClient:
        """A client with a pool of its own."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S, trust_env=False)

    @property
    def bodies(self) -> list[Any]:
        """The bodies that have reached the model."""
        return [item for batch in self.runner.batches for item in batch]


@asynccontextmanager
async def listening(*routes: BaseRoute, **settings: Any) -> AsyncIterator[ListeningServer]:
    """A server with a fake model and these settings. routes: come before those of the gateway."""
    all_settings = Settings(port=0, **({"cache_bytes": 0} | settings))
    metrics, runner = Metrics(), FakeRunner()
    cluster = LocalCluster([lambda: runner], metrics)
    app = create_app(cluster, all_settings, metrics)
    app.router.routes[:0] = routes
    running = server(app, cluster, all_settings)
    serving = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    try:
        yield ListeningServer(running, runner, running.servers[0].sockets[0].getsockname()[1])
    finally:
        runner.gate.set()
        running.should_exit = running.force_exit = True
        await asyncio.wait_for(serving, WAIT_S)
