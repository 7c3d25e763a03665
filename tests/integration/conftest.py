"""A real server on a real port, in a thread of its own, over a runner without a model."""

import asyncio
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from foveate.cluster.client import RemoteCluster, WorkerClient
from foveate.cluster.local import LocalCluster
from foveate.cluster.worker import Worker
from foveate.core.metrics import Metrics
from foveate.core.outcome import Outcome
from foveate.core.request import Request
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.server import server
from tests.support.fake_runner import FakeRunner
from tests.support.loopback import Loopback

PATIENCE_S = 30


class Diary:
    """What has happened on the server's side, for tests to wait on."""

    def __init__(self) -> None:
        self._changed, self._counts = threading.Condition(), Counter[str]()

    def note(self, event: str) -> None:
        with self._changed:
            self._counts[event] += 1
            self._changed.notify_all()

    async def reaches(self, event: str, count: int) -> None:
        """Return once the event has been noted this often."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self._counts[event] >= count, PATIENCE_S)

        assert await asyncio.to_thread(wait), f"{self._counts[event]} of {count} times {event}"


class NotedCluster(LocalCluster):
    """Notes what it is told to do; doing it begins in the same step of the event loop."""

    def __init__(self, runner: FakeRunner, metrics: Metrics, settings: Settings, diary: Diary) -> None:
        super().__init__([lambda: runner], metrics, settings.queue_items, settings.queue_bytes)
        self.diary = diary

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        self.diary.note("submitted")
        self.diary.note(f"submitted {request.id}")
        return await super().submit(request, reserved)

    async def drain(self, timeout_s: float) -> bool:
        self.diary.note("draining")
        return await super().drain(timeout_s)


class NotedWorkers(RemoteCluster):
    """The same behind a link: what it is told is noted where it arrives."""

    def __init__(self, runner: FakeRunner, metrics: Metrics, settings: Settings, diary: Diary) -> None:
        self.local, self.diary = NotedCluster(runner, metrics, settings, diary), diary
        worker = Worker(self.local, "worker")
        super().__init__([WorkerClient(Loopback(worker))], [worker.cards()], HostLoadMonitor())

    async def start(self) -> None:
        await self.local.start()

    async def drain(self, timeout_s: float) -> bool:
        self.diary.note("draining")
        return await super().drain(timeout_s)

    async def close(self) -> None:
        await super().close()
        await self.local.close()


class NotedApp:
    """ASGI middleware: notes when an HTTP request begins, and when it is over and counted."""

    def __init__(self, app: ASGIApp, diary: Diary) -> None:
        self.app, self.diary = app, diary

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        classify = scope.get("path") == "/classify"
        if classify:
            self.diary.note("begun")
        try:
            await self.app(scope, receive, send)
        finally:
            if classify:
                self.diary.note("ended")


class Served:
    """A running server, the way in, and what stands behind it."""

    def __init__(self, runner: FakeRunner, settings: Settings, remote: bool = False) -> None:
        self.runner, self.metrics, self.diary = runner, Metrics(), Diary()
        kind = NotedWorkers if remote else NotedCluster
        cluster = kind(runner, self.metrics, settings, self.diary)
        app = create_app(cluster, settings, self.metrics)
        app.add_middleware(NotedApp, diary=self.diary)
        self.limiter = app.state.limiter
        self.listening = listen()
        self.port: int = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server(app, cluster, settings)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)
        self.thread.start()

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S, trust_env=False, **options)

    def sigterm(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def ended(self) -> bool:
        """The server's thread comes to its end by itself."""
        self.thread.join(PATIENCE_S)
        return not self.thread.is_alive()

    async def entered(self) -> None:
        """Return once the runner has begun one more forward."""
        assert await asyncio.to_thread(self.runner.entered.acquire, timeout=PATIENCE_S)

    def gauge(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"model": "fake"}) or 0.0

    async def falls(self, name: str) -> None:
        """Return once the gauge is 0; behind a link it hears a moment later of who has left."""
        until = time.monotonic() + PATIENCE_S
        while self.gauge(name) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert self.gauge(name) == 0

    def counted(self) -> dict[str, int]:
        """Requests by outcome, all models together."""
        found: Counter[str] = Counter()
        for family in self.metrics.requests.collect():
            for sample in family.samples:
                if sample.name == "foveate_requests_total":
                    found[sample.labels["outcome"]] += int(sample.value)
        return dict(found)

    def assert_empty(self) -> None:
        """Nothing is left of any request."""
        assert (self.limiter.items, self.limiter.bytes) == (0, 0)
        assert self.gauge("foveate_waiting") == self.gauge("foveate_waiting_bytes") == 0

    def close(self) -> None:
        self.runner.gate.set()
        if self.thread.is_alive():
            self.sigterm()
        assert self.ended()


def listen() -> socket.socket:
    """A listening socket, so that clients may connect before the server has started."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    return listening


Serve = Callable[..., Served]


@pytest.fixture(params=["local", "remote"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts servers, and stops them after the test: with the engine in the gateway's process, and behind a
    link."""
    started: list[Served] = []

    def start(runner: FakeRunner | None = None, **settings: Any) -> Served:
        remote = request.param == "remote"
        started.append(Served(runner or FakeRunner(), Settings(**settings), remote))
        return started[-1]

    yield start
    for served in started:
        served.close()
