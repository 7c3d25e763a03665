"""uvicorn with a two-phase shutdown: drain while still listening, then stop."""

import asyncio
from socket import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from foveate.cluster import Cluster
from foveate.core.settings import Settings


class DrainingServer(uvicorn.Server):
    """On the first signal it goes on listening, so that newcomers hear 503 rather than a refused
    connection, until everything admitted has its answer. A second signal stops at once."""

    def __init__(self, config: uvicorn.Config, cluster: Cluster, drain_s: float) -> None:
        super().__init__(config)
        self.cluster, self.drain_s = cluster, drain_s
        self._drain: asyncio.Task[None] | None = None
        self._serving_on: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket] | None = None) -> None:
        self._serving_on = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is not None or self._serving_on is None:
            super().handle_exit(sig, frame)
            return
        self._serving_on.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.ensure_future(self._drain_then_stop())

    async def _drain_then_stop(self) -> None:
        await self.cluster.drain(self.drain_s)
        self.should_exit = True


def server(app: FastAPI, cluster: Cluster, settings: Settings) -> DrainingServer:
    """A server for the app; `.run()` blocks until it has drained."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    return DrainingServer(config, cluster, settings.drain_s)
