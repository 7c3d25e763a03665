"""uvicorn with a two-phase shutdown: drain while still listening, then stop."""

import asyncio
import gc
import logging
from socket import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from foveate.cluster import Cluster
from foveate.core.settings import Settings
from foveate.gateway.http_limits import BoundedHttp

log = logging.getLogger(__name__)
SEND_S = 5
"""Seconds that answers may still take to be sent after the drain."""


class DrainingServer(uvicorn.Server):
    """On the first signal it goes on listening, so that newcomers hear 503 rather than a refused
    connection, until everything admitted has its answer or `drain_timeout_s` is over. A second signal stops
    at once."""

    def __init__(self, config: uvicorn.Config, cluster: Cluster, drain_timeout_s: float) -> None:
        super().__init__(config)
        self.cluster, self.drain_timeout_s = cluster, drain_timeout_s
        self.finished = False
        """The drain came to its end; False: a forward may still be stuck in its thread."""
        self._drain: asyncio.Task[None] | None = None
        self._serving_on: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        self._serving_on = asyncio.get_running_loop()
        for listener in self.servers if self.started else ():
            for open_socket in listener.sockets:
                host, port = open_socket.getsockname()[:2]
                log.info("serving on http://%s:%d, described at /openapi.json", host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._serving_on is None:
            super().handle_exit(sig, frame)
        elif self._drain is None:
            self._serving_on.call_soon_threadsafe(self._begin_drain)
        else:
            self._serving_on.call_soon_threadsafe(self._stop_now)

    def _begin_drain(self) -> None:
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._drain_then_stop())

    def _stop_now(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
        self._drain = asyncio.ensure_future(self._close_then_stop(force=True))

    async def _drain_then_stop(self) -> None:
        log.info("draining")
        self.finished = await self.cluster.drain(self.drain_timeout_s)
        await self._close_then_stop(force=False)

    async def _close_then_stop(self, force: bool) -> None:
        await self.cluster.close()  # whoever still waits is told 503 while there is a server to say it
        self.force_exit = force
        self.should_exit = True


def freeze_gc_heap() -> None:
    """Have the garbage collector pass over all there is by now, which is here to stay: 200,000 objects, which
    it would go through for 0.1 s while everything else stands still."""
    gc.collect()
    gc.freeze()


def server(app: FastAPI, cluster: Cluster, settings: Settings) -> DrainingServer:
    """A server for the app; `.run()` blocks until it has drained."""
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        host=settings.host,
        port=settings.port,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SEND_S,
    )
    return DrainingServer(config, cluster, settings.drain_timeout_s)
