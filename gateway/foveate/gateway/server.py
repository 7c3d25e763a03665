"""uvicorn with a two-phase shutdown: drain while the server still listens, then stop."""

import asyncio
import gc
import logging
from functools import partial
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from foveate.cluster import Cluster
from foveate.core.settings import Settings
from foveate.gateway.http_server.connections import ConnectionLimits, ConnectionTable
from foveate.gateway.http_server.protocol import BoundedHttp

log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 5
"""Seconds in which the last answers must be sent after the drain."""


class DrainingServer(uvicorn.Server):
    """A server that drains on the first signal and stops at once on the second.

    While it drains it still listens, so that new requests get 503 and not a refused connection. The drain
    ends when every admitted request has its answer, or after `drain_timeout_s` seconds.
    """

    def __init__(
        self, config: uvicorn.Config, cluster: Cluster, drain_timeout_s: float, connections: ConnectionTable
    ) -> None:
        super().__init__(config)
        self.cluster, self.drain_timeout_s, self.connections = cluster, drain_timeout_s, connections
        self.finished = False
        """Whether the drain was completed; if not, a forward may still be running in its thread."""
        self._shutdown: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start listening, and log the addresses."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        for listener in self.servers if self.started else ():
            for open_socket in listener.sockets:
                host, port = open_socket.getsockname()[:2]
                log.info("serving on http://%s:%d, API described at /openapi.json", host, port)

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose time is over, once a second. uvicorn ticks ten times a second."""
        if counter % 10 == 0:
            self.connections.close_expired()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT."""
        if self._loop is None:
            super().handle_exit(sig, frame)
        elif self._shutdown is None:
            self._loop.call_soon_threadsafe(self._begin_drain)
        else:
            self._loop.call_soon_threadsafe(self._stop_now)

    def _begin_drain(self) -> None:
        if self._shutdown is None:
            self._shutdown = asyncio.ensure_future(self._drain_and_stop())

    def _stop_now(self) -> None:
        if self._shutdown is not None:
            self._shutdown.cancel()
        self._shutdown = asyncio.ensure_future(self._close_and_stop(force=True))

    async def _drain_and_stop(self) -> None:
        log.info("draining")
        self.finished = await self.cluster.drain(self.drain_timeout_s)
        await self._close_and_stop(force=False)

    async def _close_and_stop(self, force: bool) -> None:
        await self.cluster.close()  # requests that still wait get 503 while the server can send it
        self.force_exit = force
        self.should_exit = True


def freeze_gc_heap() -> None:
    """Mark the startup heap as static, so that the garbage collector ignores it.

    It has about 200,000 objects, which a full collection would scan for 0.1 s with all threads stopped.
    """
    gc.collect()
    gc.freeze()


def server(app: FastAPI, cluster: Cluster, settings: Settings) -> DrainingServer:
    """A server for the app. `.run()` blocks until it has drained."""
    limits = ConnectionLimits.of(settings)
    connections = ConnectionTable(limits)
    protocol: Any = partial(BoundedHttp, table=connections)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        host=settings.host,
        port=settings.port,
        backlog=limits.backlog,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=SEND_TIMEOUT_S,
    )
    return DrainingServer(config, cluster, settings.drain_timeout_s, connections)
