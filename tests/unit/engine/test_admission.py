"""Admission: which requests are refused, and which ones count as demand."""

import asyncio
from dataclasses import replace

import pytest

from foveate.core.errors import BadPlan, DeadlineExceeded, Overloaded, TooLate
from foveate.core.metrics import Metrics
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.admission import MAX_ALLOWED_S
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from tests.support.engines import blocked, make_request, running, soon, submitted, with_latency
from tests.support.fake_runner import FULL, FakeRunner

pytestmark = pytest.mark.anyio


async def test_a_request_with_a_deadline_in_the_past_is_refused() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(make_request("late", deadline=engine.clock() - 1)))
    assert runner.batches == []


@pytest.mark.parametrize(("limits", "size"), [({"max_items": 2}, 1), ({"max_bytes": 20}, 10)])
async def test_a_full_queue_refuses_with_a_retry_after(limits: dict[str, int], size: int) -> None:
    runner = FakeRunner(max_batch=8)
    async with running(runner, **limits) as engine:
        first = await blocked(engine, runner)
        waiting = await submitted(engine, make_request(1, size=size), make_request(2, size=size))
        with pytest.raises(Overloaded) as refused:
            await soon(engine.submit(make_request(3, size=size)))
        assert refused.value.retry_after_s > 0
        runner.gate.set()
        await soon(asyncio.gather(first, *waiting))
        assert engine.queue.bytes == 0


async def test_an_unknown_plan_is_refused_at_admission() -> None:
    async with running(FakeRunner()) as engine:
        with pytest.raises(BadPlan):
            await soon(engine.submit(make_request("a", Plan("fake", 32, reducer="tome:8"))))


async def test_a_request_that_would_be_late_is_refused_at_once_with_the_predicted_wait() -> None:
    runner = with_latency(FakeRunner(), 0.5)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        now = engine.clock()
        with pytest.raises(TooLate) as refused:
            await soon(engine.submit(make_request("late", deadline=now + 0.8)))
        with pytest.raises(TooLate):
            engine.reserve(Objective(now + 0.8), None, 0.0)
        engine.reserve(Objective(now + 5), None, 1.0)
        with pytest.raises(TooLate):
            engine.reserve(Objective(now + 5), None, 4.6)
        fine = await submitted(engine, make_request("fine", deadline=now + 20))
        runner.gate.set()
        await soon(asyncio.gather(first, *fine))
    assert 0.3 < refused.value.retry_after_s <= 0.5
    assert runner.batches == [["first"], ["fine"]]


async def test_estimates_of_a_machine_that_was_slow_for_a_moment_decay_with_refusals() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        for _ in range(3):
            engine.latency.observe(FULL, 1, 100.0, 1)
        refused = 0
        for _ in range(10):
            try:
                engine.reserve(Objective(engine.clock() + 5), None, 0.0)
            except TooLate:
                refused += 1
        assert 0 < refused < 5
        await soon(engine.submit(make_request("first", deadline=engine.clock() + 5)))


async def test_a_request_that_would_be_late_on_an_idle_device_is_no_demand() -> None:
    device = DeviceExecutor(lambda: 100.0)
    async with running(FakeRunner(), device=device, clock=device.clock) as engine:
        for _ in range(50):
            with pytest.raises(TooLate):
                engine.reserve(Objective(engine.clock() + 1e-5), None, 0.0)
        assert engine.backlog.arrivals.read(engine.clock()).rate == 0


async def test_a_reserved_request_is_counted_once_and_a_refusal_of_the_gateway_too() -> None:
    metrics = Metrics()
    engine = Engine(FakeRunner(), metrics)
    engine.start()

    def demand_s() -> float:
        value = metrics.registry.get_sample_value("foveate_full_quality_seconds_total", {"model": "fake"})
        return value or 0.0

    each_s = engine.backlog.request_s(FULL)
    engine.reserve(Objective(engine.clock() + 5), None, 0.0)
    assert demand_s() == pytest.approx(each_s)
    await soon(engine.submit(make_request("a", deadline=engine.clock() + 5), reserved=True))
    assert demand_s() == pytest.approx(each_s)
    engine.count_refused(2.0)
    each_now_s = engine.backlog.request_s(FULL)
    assert demand_s() == pytest.approx(each_s + each_now_s)
    await engine.close()


async def test_the_time_that_requests_allow_is_bounded_and_defaults_to_the_default_deadline() -> None:
    async with running(FakeRunner(), default_deadline_s=3.0) as engine:
        engine.reserve(Objective(), None, 0.0)
        assert engine.backlog.arrivals.read(engine.clock()).allowed_s == pytest.approx(3.0)
    async with running(FakeRunner()) as engine:
        engine.reserve(Objective(engine.clock() + 1e6), None, 0.0)
        assert engine.backlog.arrivals.read(engine.clock()).allowed_s == pytest.approx(MAX_ALLOWED_S)


async def test_a_queued_request_is_refused_in_the_place_of_a_more_urgent_one() -> None:
    runner = with_latency(FakeRunner(max_batch=2), 0.5)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        now = engine.clock()
        (plain,) = await submitted(engine, make_request("plain", deadline=now + 1.2))
        urgent = replace(make_request("urgent"), objective=Objective(now + 1.2, priority=1))
        (task,) = await submitted(engine, urgent)
        with pytest.raises(TooLate):
            await soon(plain)
        runner.gate.set()
        await soon(asyncio.gather(first, task))
    assert runner.batches == [["first"], ["urgent"]]
