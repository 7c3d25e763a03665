"""An engine inside another application: requests from media and a deadline in seconds."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import BadPlan, BadRequest, Draining, TooLate
from foveate.core.metrics import Metrics
from foveate.core.plan import Plan
from foveate.engine.embedding import embedded_request, media_bytes
from foveate.engine.engine import Engine
from tests.support.engines import blocked, make_request, soon, with_latency
from tests.support.fake_runner import FULL, HALF, FakeRunner

pytestmark = pytest.mark.anyio
CARD = FakeRunner().card


def test_the_deadline_counts_from_now() -> None:
    request = embedded_request(CARD, b"abc", 100.0, {"deadline_s": 0.5, "min_quality": 0.9, "tenant": "t"})
    assert (request.model, request.media, request.size_bytes, request.task) == ("fake", b"abc", 3, "classify")
    assert request.objective.deadline == 100.5
    assert (request.objective.min_quality, request.objective.tenant) == (0.9, "t")
    assert request.id != embedded_request(CARD, b"", 0.0, {}).id


@pytest.mark.parametrize("deadline_s", [None, math.inf])
def test_no_deadline(deadline_s: float | None) -> None:
    assert embedded_request(CARD, b"", 100.0, {"deadline_s": deadline_s}).objective.deadline is None


def test_a_plan_may_be_text() -> None:
    assert embedded_request(CARD, b"", 0.0, {"plan": "evit:0.5"}).plan == HALF
    assert embedded_request(CARD, b"", 0.0, {"plan": FULL}).plan == FULL
    with pytest.raises(BadPlan):
        embedded_request(CARD, b"", 0.0, {"plan": "other@32"})


@pytest.mark.parametrize("options", [{"deadline_s": 0}, {"deadline_s": -1}, {"deadline_s": math.nan}])
def test_deadlines_out_of_range(options: Any) -> None:
    with pytest.raises(BadRequest, match="deadline_s must be above 0"):
        embedded_request(CARD, b"", 0.0, options)


@pytest.mark.parametrize("min_quality", [-0.1, 1.1, math.nan])
def test_qualities_out_of_range(min_quality: float) -> None:
    with pytest.raises(BadRequest, match="min_quality must be a number from 0 to 1"):
        embedded_request(CARD, b"", 0.0, {"min_quality": min_quality})


def test_bytes_of_media() -> None:
    assert media_bytes(np.zeros((2, 3), np.uint16)) == 12
    assert media_bytes([b"12", np.zeros(3, np.uint8)]) == 5
    assert media_bytes(object()) == 0


async def test_an_engine_needs_a_runner_alone() -> None:
    async with Engine(FakeRunner()) as engine:
        outcome = await soon(engine.submit("item", deadline_s=20, min_quality=1.0))
        assert outcome.plan == FULL
        assert (await soon(engine.submit("item", plan="evit:0.5"))).plan == HALF
        assert (await soon(engine.submit(make_request("item")))).plan == FULL
    assert engine.metrics.registry.get_sample_value("foveate_batch_size_count", {"model": "fake"}) == 3
    with pytest.raises(Draining):
        await engine.submit("item")


async def test_concurrent_requests_make_batches() -> None:
    runner, metrics = FakeRunner(), Metrics()
    async with Engine(runner, metrics) as engine:
        first = await blocked(engine, runner)
        others = [asyncio.create_task(engine.submit(f"item {n}", deadline_s=20)) for n in range(4)]
        await asyncio.sleep(0)
        runner.gate.set()
        outcomes = await soon(asyncio.gather(first, *others))
    assert [outcome.batch_size for outcome in outcomes] == [1, 4, 4, 4, 4]
    assert engine.metrics is metrics


async def test_failures_are_typed() -> None:
    async with Engine(with_latency(FakeRunner(), 10.0)) as engine:
        with pytest.raises(TooLate) as failure:
            await soon(engine.submit("item", deadline_s=1.0))
        assert (failure.value.status, failure.value.outcome) == (429, "refused")
        with pytest.raises(BadPlan):
            await soon(engine.submit("item", plan=Plan("other", 32)))


async def test_the_end_of_the_block_finishes_what_was_submitted() -> None:
    runner = FakeRunner()
    async with Engine(runner) as engine:
        first = await blocked(engine, runner)
        second = asyncio.create_task(engine.submit("second"))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, runner.gate.set)
    assert first.done()
    assert (await second).plan == FULL


async def test_an_error_in_the_block_ends_it_at_once() -> None:
    runner = FakeRunner()
    with pytest.raises(KeyError):
        async with Engine(runner) as engine:
            running = await blocked(engine, runner)
            waiting = asyncio.create_task(engine.submit("waiting"))
            await asyncio.sleep(0)
            raise KeyError
    for task in (running, waiting):
        with pytest.raises(Draining):
            await soon(task)
    runner.gate.set()


async def test_a_cancelled_caller_drops_its_request() -> None:
    runner = FakeRunner()
    async with Engine(runner) as engine:
        await blocked(engine, runner)
        left = asyncio.create_task(engine.submit("left"))
        await asyncio.sleep(0)
        assert len(engine.queue) == 1
        left.cancel()
        await asyncio.sleep(0)
        assert len(engine.queue) == 0
        runner.gate.set()
    assert ["left"] not in runner.batches
