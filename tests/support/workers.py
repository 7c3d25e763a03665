"""Workers with fake runners in the test's own process, and requests for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from foveate.cluster.local import LocalCluster
from foveate.cluster.remote import RemoteCluster
from foveate.cluster.worker import Worker
from foveate.core.metrics import Metrics
from foveate.core.request import Objective, Request
from foveate.engine.hang import HangLimits
from foveate.estimation.host_load import HostLoadMonitor
from tests.support.fake_runner import FakeRunner
from tests.support.loopback import LoopbackTransport

TIMEOUT_S = 20.0
"""Seconds that a test waits for an event that is due at once."""


def fake_request(name: str = "r", media: object = "image", **objective: float) -> Request:
    """A request to the model of FakeRunner."""
    return Request(name, "fake", media, 100, objective=Objective(**objective))  # type: ignore[arg-type]


def itself(runner: Any) -> Any:
    """The factory of a runner that exists."""
    return runner


@asynccontextmanager
async def running_workers(
    *runners: Any, queue_items: int = 64, hang_limits: HangLimits | None = None
) -> AsyncIterator[list[Worker]]:
    """One started worker for each runner."""
    workers = [
        Worker(
            LocalCluster([partial(itself, runner)], Metrics(), queue_items, hang_limits=hang_limits),
            f"worker {number}",
        )
        for number, runner in enumerate(runners)
    ]
    for worker in workers:
        await worker.cluster.start()
    try:
        yield workers
    finally:
        for runner in runners:
            runner.gate.set()
        for worker in workers:
            await worker.cluster.close()


async def connect(*transports: LoopbackTransport) -> RemoteCluster:
    """A remote cluster on these transports."""
    return await RemoteCluster.connect(transports, HostLoadMonitor())


async def forward_started(runner: FakeRunner) -> None:
    """Wait until the runner starts one more forward."""
    assert await asyncio.to_thread(runner.entered.acquire, timeout=TIMEOUT_S)
