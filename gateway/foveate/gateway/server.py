"""uvicorn with a two-phase shutdown: drain while the server still listens, then stop."""

import asyncio
import gc
import logging
import os
import sys
import threading
from functools import partial
from socket import socket
from time import monotonic
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from foveate.cluster import Cluster
from foveate.core.settings import Settings
from foveate.gateway.http_server.connections import ConnectionLimits, ConnectionTable
from foveate.gateway.http_server.protocol import BoundedHttp
from foveate.gateway.limits import AdmissionLimiter

log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 5
"""Seconds in which the last answers must be sent after the drain."""
SAME_SIGNAL_S = 0.2
"""Signals within so many seconds of the first one are that signal once more: the terminal sends it to a whole
group of processes, and a parent such as `timeout` or a task runner passes it on too."""
LAST_SEND_S = 0.2
"""The same after the second signal: until the requests have ended, and once more to send their answers."""


class DrainingServer(uvicorn.Server):
    """A server that drains on the first signal and stops at once on the second.

    While it drains it still listens, so that new requests get 503 and not a refused connection. The drain
    ends when every accepted request has its answer and no forward runs, or after `drain_timeout_s` seconds.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        cluster: Cluster,
        limiter: AdmissionLimiter,
        connections: ConnectionTable,
        drain_timeout_s: float,
    ) -> None:
        """limiter: counts the requests that the gateway has accepted."""
        super().__init__(config)
        self.cluster, self.limiter, self.drain_timeout_s = cluster, limiter, drain_timeout_s
        self.connections = connections
        self.finished = False
        """Whether the drain was completed; if not, a forward may still be running in its thread."""
        self.drain_until = 0.0
        """When the drain time ends; monotonic clock seconds."""
        self._owns_process = False
        self._shutdown: asyncio.Task[None] | None = None
        self._signalled = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve until a signal arrives. Blocks.

        On the main thread, exits the process with status 1 if work does not end: its thread would keep the
        process for ever.
        """
        self._owns_process = threading.current_thread() is threading.main_thread()
        super().run(sockets)
        if self._owns_process and not self.finished:
            end_process()

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
            self._signalled = monotonic()
            self._shutdown = asyncio.ensure_future(self._drain_and_stop())

    def _stop_now(self) -> None:
        if monotonic() - self._signalled < SAME_SIGNAL_S:
            return
        if self._shutdown is not None:
            self._shutdown.cancel()
        log.warning("a second signal: the server stops at once, with status 1")
        self._shutdown = asyncio.ensure_future(self._close_and_stop(force=True))

    async def _drain_and_stop(self) -> None:
        log.info("draining")
        self.drain_until = monotonic() + self.drain_timeout_s
        self.cluster.begin_drain()
        # A request that is still read or decoded is admitted by its engine later.
        await self.limiter.wait_empty(self.drain_timeout_s)
        self.finished = await self.cluster.drain(max(0.0, self.drain_until - monotonic()))
        if not self.finished or self.limiter.items:
            self.finished = False
            took_s = monotonic() - self.drain_until + self.drain_timeout_s
            log.error("the drain ends unfinished after %.1f s, with status 1: %s", took_s, self._unfinished())
        await self._close_and_stop(force=False)

    def _unfinished(self) -> str:
        """What the drain has waited for, as one clause."""
        return self.cluster.unfinished or f"{self.limiter.items} requests are being received or answered"

    async def _close_and_stop(self, force: bool) -> None:
        await self.cluster.close()  # requests that still wait get 503 while the server can send it
        if force and self._owns_process:
            await self.limiter.wait_empty(LAST_SEND_S)
            await asyncio.sleep(LAST_SEND_S)
            end_process()
        self.force_exit = force
        self.should_exit = True


def end_leftover_threads(timeout_s: float) -> None:
    """Wait for the threads that outlive the server, and end the process with status 1 if they do not end.

    A decoder may still work on the media of a client that left. Its thread would keep the process for ever.
    """
    until, own = monotonic() + timeout_s, threading.current_thread()
    threads = [thread for thread in threading.enumerate() if thread is not own and not thread.daemon]
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
    if left := [thread.name for thread in threads if thread.is_alive()]:
        log.error("the server has drained, but threads do not end; the process ends with status 1: %s", left)
        end_process()


def end_process() -> NoReturn:
    """End the process with status 1, whatever its threads do."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)


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
    return DrainingServer(config, cluster, app.state.limiter, connections, settings.drain_timeout_s)
