"""An engine around a fake runner, and requests to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from foveate.core.metrics import Metrics
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.engine import Engine
from tests.support.fake_runner import FakeRunner

T = TypeVar("T")


def make_request(
    media: Any, plan: Plan | None = None, deadline: float | None = None, size: int = 1
) -> Request:
    """A request to the fake model. deadline: clock seconds; size: bytes."""
    return Request("id", "fake", media, size, objective=Objective(deadline), plan=plan)


@asynccontextmanager
async def running(runner: FakeRunner, **options: Any) -> AsyncIterator[Engine]:
    """An engine that serves until the end of the block."""
    engine = Engine(runner, Metrics(), **options)
    engine.start()
    try:
        yield engine
    finally:
        runner.gate.set()
        await engine.close()


async def soon(awaitable: Awaitable[T]) -> T:
    """The result, within 20 seconds."""
    return await asyncio.wait_for(awaitable, 20)


async def forward_begins(runner: FakeRunner) -> None:
    """Return once the runner has begun one more forward."""
    assert await asyncio.to_thread(runner.entered.acquire, timeout=20)


async def submitted(engine: Engine, *requests: Request) -> list[asyncio.Task[Outcome]]:
    """Tasks of requests that are admitted already."""
    tasks = [asyncio.create_task(engine.submit(request)) for request in requests]
    await asyncio.sleep(0)
    return tasks


async def blocked(engine: Engine, runner: FakeRunner) -> asyncio.Task[Outcome]:
    """A request whose forward has begun and does not end before the gate of the runner opens."""
    runner.gate.clear()
    (first,) = await submitted(engine, make_request("first"))
    await forward_begins(runner)
    return first


def with_latency(runner: FakeRunner, seconds: float) -> FakeRunner:
    """The runner, with a profile in which every batch takes this long."""
    ladder = tuple(replace(rung, latency_s={1: seconds, 8: seconds}) for rung in runner.card.ladder)
    runner.card = replace(runner.card, ladder=ladder)
    return runner
