"""A real server on a real port, in a thread of its own, in front of a runner without a model."""

import asyncio
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from foveate.cluster.client import WorkerClient
from foveate.cluster.local import LocalCluster
from foveate.cluster.remote import RemoteCluster
from foveate.cluster.worker import Worker
from foveate.core.metrics import Metrics
from foveate.core.outcome import Outcome
from foveate.core.request import Request
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.server import server
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import identity
from tests.support.loopback import LoopbackTransport

TIMEOUT_S = 30


class EventLog:
    """Events on the server's side, counted by name. Tests wait for them."""

    def __init__(self) -> None:
        self._changed, self._counts = threading.Condition(), Counter[str]()

    def record(self, event: str) -> None:
        """Count one more event of this name."""
        with self._changed:
            self._counts[event] += 1
            self._changed.notify_all()

    def count(self, event: str) -> int:
        """How often this event has been recorded."""
        with self._changed:
            return self._counts[event]

    async def wait_for(self, event: str, count: int) -> None:
        """Return once the event has been recorded this often."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self._counts[event] >= count, TIMEOUT_S)

        assert await asyncio.to_thread(wait), f"{self._counts[event]} of {count} events {event!r}"


class ObservedCluster(LocalCluster):
    """A cluster that records its calls; each call starts in the same step of the event loop."""

    def __init__(
        self, runners: Sequence[Any], metrics: Metrics, settings: Settings, events: EventLog
    ) -> None:
        factories = [partial(identity, each) for each in runners]
        super().__init__(factories, metrics, settings.queue_items, settings.queue_bytes)
        self.events = events

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        self.events.record("submitted")
        self.events.record(f"submitted {request.id}")
        return await super().submit(request, reserved)

    def begin_drain(self) -> None:
        super().begin_drain()
        self.events.record("draining")


class ObservedRemoteCluster(RemoteCluster):
    """The same cluster behind a transport; calls are recorded where they arrive."""

    def __init__(
        self, runners: Sequence[Any], metrics: Metrics, settings: Settings, events: EventLog
    ) -> None:
        self.local, self.events = ObservedCluster(runners, metrics, settings, events), events
        worker = Worker(self.local, "worker")
        super().__init__([WorkerClient(LoopbackTransport(worker))], [worker.cards()], HostLoadMonitor())

    async def start(self) -> None:
        await self.local.start()

    def begin_drain(self) -> None:
        super().begin_drain()
        self.events.record("draining")

    async def close(self) -> None:
        await super().close()
        await self.local.close()


class ObservedApp:
    """ASGI middleware that records when a request begins, and when it has ended and is counted."""

    def __init__(self, app: ASGIApp, events: EventLog) -> None:
        self.app, self.events = app, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        classify = scope.get("path") == "/classify"
        if classify:
            self.events.record("begun")
        try:
            await self.app(scope, receive, send)
        finally:
            if classify:
                self.events.record("ended")


class RunningServer:
    """A running server, with access to its runner, its metrics and its events."""

    def __init__(
        self, runner: FakeRunner, settings: Settings, remote: bool = False, others: Sequence[Any] = ()
    ) -> None:
        """others: the runners of further models."""
        self.runner, self.metrics, self.events = runner, Metrics(), EventLog()
        kind = ObservedRemoteCluster if remote else ObservedCluster
        cluster = kind((runner, *others), self.metrics, settings, self.events)
        app = create_app(cluster, settings, self.metrics)
        app.add_middleware(ObservedApp, events=self.events)
        self.limiter = app.state.limiter
        self.listening = listen()
        self.port: int = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server(app, cluster, settings)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)
        self.thread.start()

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A new client of the server."""
        return httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, trust_env=False, **options)

    def sigterm(self) -> None:
        """Handle SIGTERM as the process would."""
        self.server.handle_exit(signal.SIGTERM, None)

    def ended(self) -> bool:
        """Wait for the server's thread to end; whether it did."""
        self.thread.join(TIMEOUT_S)
        return not self.thread.is_alive()

    async def entered(self) -> None:
        """Return once the runner has begun one more forward."""
        assert await asyncio.to_thread(self.runner.entered.acquire, timeout=TIMEOUT_S)

    def gauge(self, name: str) -> float:
        """The value of a gauge of the model."""
        return self.metrics.registry.get_sample_value(name, {"model": "fake"}) or 0.0

    async def wait_for_zero(self, name: str) -> None:
        """Return once the gauge is 0. Behind a transport, disconnects reach the worker a moment later."""
        until = time.monotonic() + TIMEOUT_S
        while self.gauge(name) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert self.gauge(name) == 0

    def counted(self) -> dict[str, int]:
        """Numbers of requests by outcome, of all models together."""
        counts: Counter[str] = Counter()
        for family in self.metrics.requests.collect():
            for sample in family.samples:
                if sample.name == "foveate_requests_total":
                    counts[sample.labels["outcome"]] += int(sample.value)
        return dict(counts)

    def assert_empty(self) -> None:
        """Assert that nothing is left of any request."""
        assert (self.limiter.items, self.limiter.bytes) == (0, 0)
        assert self.gauge("foveate_waiting") == self.gauge("foveate_waiting_bytes") == 0

    def close(self) -> None:
        """Stop the server."""
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


Serve = Callable[..., RunningServer]


@pytest.fixture(params=["local", "remote"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts servers, and stops them after the test. The engine runs in the gateway's process, or behind a
    transport."""
    started: list[RunningServer] = []

    def start(runner: FakeRunner | None = None, others: Sequence[Any] = (), **settings: Any) -> RunningServer:
        remote = request.param == "remote"
        started.append(RunningServer(runner or FakeRunner(), Settings(**settings), remote, others))
        return started[-1]

    yield start
    for served in started:
        served.close()
