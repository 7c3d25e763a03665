"""The engine's loop on a fake runner: batching, deadlines, cancellation, sharing a device, drain."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from foveate.core.errors import DeadlineExceeded, Draining, FoveateError, RunFailed, TooLate
from foveate.core.metrics import Metrics
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.estimation.arrivals import ArrivalStats
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import BatchDecision, QueuedT
from foveate.scheduling.slo_policy import SloPolicy
from tests.support.engines import (
    blocked,
    forward_begins,
    make_request,
    running,
    soon,
    submitted,
    with_latency,
)
from tests.support.fake_runner import FULL, HALF, RUNGS, FakeRunner

pytestmark = pytest.mark.anyio


async def test_a_lone_request_runs_at_once_in_a_batch_of_its_own() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        outcome = await soon(engine.submit(make_request("a")))
    assert runner.batches == [["a"]]
    assert outcome.batch_size == 1
    assert outcome.plan == FULL


async def test_waiting_requests_are_batched_in_order_of_arrival() -> None:
    runner = FakeRunner(max_batch=4)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        rest = await submitted(engine, *(make_request(i) for i in range(6)))
        runner.gate.set()
        await soon(asyncio.gather(first, *rest))
    assert runner.batches == [["first"], [0, 1, 2, 3], [4, 5]]


async def test_a_batch_that_is_not_full_is_formed_only_when_the_device_is_free() -> None:
    runner = FakeRunner(max_batch=4)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        early = await submitted(engine, make_request("early"))
        late = await submitted(engine, make_request("late"))
        runner.gate.set()
        await soon(asyncio.gather(first, *early, *late))
    assert runner.batches == [["first"], ["early", "late"]]


async def test_requests_with_different_plans_do_not_share_a_batch() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        rest = await submitted(engine, make_request(1, FULL), make_request(2, HALF), make_request(3, FULL))
        runner.gate.set()
        outcomes = await soon(asyncio.gather(first, *rest))
    assert runner.batches == [["first"], [1, 3], [2]]
    assert [outcome.plan for outcome in outcomes[1:]] == [FULL, HALF, FULL]


async def test_a_cancelled_request_never_reaches_a_forward() -> None:
    runner = FakeRunner(max_batch=2)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        cancelled_task, other = await submitted(engine, make_request("cancelled"), make_request("other"))
        cancelled_task.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(asyncio.gather(first, other))
        assert cancelled_task.cancelled()
        assert len(engine.queue) == 0
        assert not engine.busy
    assert runner.batches == [["first"], ["other"]]


async def test_a_request_cancelled_after_staging_never_reaches_a_forward() -> None:
    runner = FakeRunner(max_batch=2)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        cancelled_task, other = await submitted(engine, make_request("cancelled"), make_request("other"))
        while len(engine.queue):  # a full batch: it is prefetched and staged
            await asyncio.sleep(0)
        cancelled_task.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(asyncio.gather(first, other))
    assert runner.batches == [["first"], ["other"]]


async def test_many_cancellations_do_not_affect_later_requests() -> None:
    runner = FakeRunner()
    async with running(runner, max_items=2000) as engine:
        first = await blocked(engine, runner)
        tasks = await submitted(engine, *(make_request(i) for i in range(1000)))
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(first)
        outcome = await soon(engine.submit(make_request("after")))
    assert outcome.batch_size == 1
    assert runner.batches == [["first"], ["after"]]


async def test_requests_that_end_while_their_engine_waits_for_the_device_do_not_run() -> None:
    device, busy, quiet = DeviceExecutor(), FakeRunner("busy"), FakeRunner("quiet")
    async with running(busy, device=device) as first, running(quiet, device=device) as second:
        holding = await blocked(first, busy)
        cancelled_task, late = await submitted(
            second, make_request("cancelled"), make_request("late", deadline=second.clock() + 0.02)
        )
        cancelled_task.cancel()
        with pytest.raises(DeadlineExceeded):
            await soon(late)
        busy.gate.set()
        await soon(holding)
        await soon(second.submit(make_request("alive")))
    assert quiet.batches == [["alive"]]


async def test_a_deadline_ends_the_wait_while_the_runner_is_blocked() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(make_request("late", deadline=engine.clock() + 0.01)))
        assert len(engine.queue) == 0
        runner.gate.set()
        await soon(first)
    assert runner.batches == [["first"]]


async def test_a_deadline_ends_a_request_whose_forward_has_begun() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        runner.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(make_request("slow", deadline=engine.clock() + 0.5)))
        runner.gate.set()
        await soon(engine.submit(make_request("next")))


async def test_drain_finishes_admitted_requests_and_refuses_new_ones() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        (waiting,) = await submitted(engine, make_request("waiting"))
        drain = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await soon(engine.submit(make_request("new")))
        assert not drain.done()
        runner.gate.set()
        await soon(asyncio.gather(first, waiting, drain))
    assert runner.batches == [["first"], ["waiting"]]


async def test_close_ends_all_requests() -> None:
    runner = FakeRunner()
    engine = Engine(runner, Metrics())
    engine.start()
    first = await blocked(engine, runner)
    (waiting,) = await submitted(engine, make_request("waiting"))
    await engine.close()
    for task in (first, waiting):
        with pytest.raises(FoveateError):
            await soon(task)
    runner.gate.set()


async def test_gauges_fall_when_a_request_is_cancelled() -> None:
    runner, metrics = FakeRunner(), Metrics()
    engine = Engine(runner, metrics)
    engine.start()
    value = metrics.registry.get_sample_value
    first = await blocked(engine, runner)
    (cancelled_task,) = await submitted(engine, make_request("cancelled", size=7))
    assert value("foveate_waiting", {"model": "fake"}) == 1
    assert value("foveate_waiting_bytes", {"model": "fake"}) == 7
    cancelled_task.cancel()
    await asyncio.sleep(0)
    assert value("foveate_waiting", {"model": "fake"}) == 0
    assert value("foveate_waiting_bytes", {"model": "fake"}) == 0
    runner.gate.set()
    await soon(first)
    await soon(engine.drain())
    assert value("foveate_running", {"model": "fake"}) == 0
    await engine.close()


async def test_a_tight_deadline_gets_a_cheaper_plan_unless_the_minimum_quality_forbids_it() -> None:
    ladder = (replace(RUNGS[0], latency_s={1: 0.01}), replace(RUNGS[1], latency_s={1: 60.0}))
    runner = FakeRunner()
    runner.card = replace(runner.card, ladder=ladder)
    async with running(runner) as engine:
        tight = await soon(engine.submit(make_request("tight", deadline=engine.clock() + 5)))
        high_quality = replace(make_request("high quality"), objective=Objective(None, 0.95))
        free = await soon(engine.submit(high_quality))
        with pytest.raises(TooLate):
            await soon(engine.submit(replace(high_quality, objective=Objective(engine.clock() + 5, 0.95))))
    assert tight.plan == HALF
    assert tight.reason in ("deadline", "load")
    assert free.plan == FULL


class FailingPolicy(SloPolicy):
    """Fails as soon as a request waits."""

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        if waiting:
            raise ZeroDivisionError
        return None


async def test_if_the_policy_fails_all_requests_fail_and_later_ones_are_refused() -> None:
    async with running(FakeRunner(), policy=FailingPolicy) as engine:
        with pytest.raises(RunFailed):
            await soon(engine.submit(make_request("first")))
        assert not engine.serving
        with pytest.raises(Draining):
            await soon(engine.submit(make_request("second")))
        await soon(engine.drain())


async def test_engines_that_share_a_device_wait_for_its_running_batch() -> None:
    device, busy, quiet = DeviceExecutor(), with_latency(FakeRunner("busy"), 0.5), FakeRunner("quiet")
    async with running(busy, device=device) as first, running(quiet, device=device) as second:
        holding = await blocked(first, busy)
        waiting = await submitted(second, make_request("one"))
        await asyncio.sleep(0.01)
        assert 0.3 < second.backlog.free_at - second.clock() <= 0.51
        before = second.latency.predict(FULL, 1)
        busy.gate.set()
        await soon(asyncio.gather(holding, *waiting))
        assert second.latency.predict(FULL, 1) < 10 * before, (
            "the wait for the device is not part of a forward"
        )
        assert device.demand_besides(second.backlog).active
        assert not len(device.demand_besides(second.backlog).virtual_deadline)


class SlowStacking(FakeRunner):
    """Stacking takes 0.3 s."""

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        time.sleep(0.3)
        return super().stack(media, plan)


async def test_the_device_does_not_wait_while_one_of_its_models_stacks() -> None:
    device, first, second = DeviceExecutor(), SlowStacking("first", max_batch=2), FakeRunner("second")
    async with running(first, device=device) as one, running(second, device=device) as other:
        first.gate.clear()
        tasks = await submitted(one, *(make_request(number) for number in range(6)))
        await forward_begins(first)
        await asyncio.sleep(0.05)  # the next two are prefetched and being stacked
        first.gate.set()
        await soon(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
        began = time.monotonic()
        await soon(other.submit(make_request("quick", deadline=other.clock() + 5)))
        assert time.monotonic() - began < 0.2
        await soon(asyncio.gather(*tasks))


class RecordsFreeAt(FakeRunner):
    """Records at the start of each forward for how long the device is predicted to be busy."""

    engine: Engine

    def run(self, batch: list[Any], plan: Plan) -> list[Any]:
        self.busy_s.append(self.engine.backlog.free_at - self.engine.clock())
        return super().run(batch, plan)

    def __init__(self) -> None:
        super().__init__()
        self.busy_s: list[float] = []


async def test_a_prefetched_batch_counts_as_busy_time_until_it_runs() -> None:
    """The next batch is prefetched while the one before it runs; both take half a second."""
    runner = RecordsFreeAt()
    with_latency(runner, 0.5)
    async with running(runner) as engine:
        runner.engine = engine
        first = await blocked(engine, runner)
        others = await submitted(engine, *(make_request(n) for n in range(12)))
        runner.gate.set()
        await soon(asyncio.gather(first, *others))
    assert [len(batch) for batch in runner.batches] == [1, 4, 4, 4]
    assert runner.busy_s[1] > 0.7
    assert runner.busy_s[3] < 0.6, "no batch is prefetched behind the last"


async def test_no_forward_is_spent_on_expired_or_cancelled_requests() -> None:
    """Of 300 requests with tight deadlines, many expire or are cancelled; none of them runs."""
    runner, random = FakeRunner(max_batch=4), Random(0)
    async with running(runner, max_items=2000) as engine:
        first = await blocked(engine, runner)
        now = engine.clock()
        tasks = await submitted(
            engine, *(make_request(i, deadline=now + random.choice((0.02, 0.05, 30.0))) for i in range(300))
        )
        for task in tasks[::7]:
            task.cancel()
        await asyncio.sleep(0.1)
        runner.gate.set()
        ended = await soon(asyncio.gather(first, *tasks, return_exceptions=True))
    ran = [item for batch in runner.batches for item in batch if item != "first"]
    answered = [i for i, end in enumerate(ended[1:]) if isinstance(end, Outcome)]
    assert sorted(ran) == answered
    assert 50 < len(answered) < 200


async def test_a_drain_waits_for_a_batch_whose_clients_have_left() -> None:
    runner = FakeRunner(max_batch=2)
    async with running(runner) as engine:
        tasks = [
            await blocked(engine, runner),
            *await submitted(engine, *(make_request(n) for n in range(2))),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.02)
        assert engine.busy and not engine.unfinished
        drain = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.05)
        assert not drain.done()
        runner.gate.set()
        await soon(drain)
        assert not engine.busy
    assert runner.batches == [["first"]]


async def test_the_longest_wait_is_exported() -> None:
    runner, metrics = FakeRunner(), Metrics()
    engine = Engine(runner, metrics)
    engine.start()

    def oldest_s() -> float:
        return metrics.registry.get_sample_value("foveate_oldest_wait_seconds", {"model": "fake"}) or 0.0

    first = await blocked(engine, runner)
    assert oldest_s() == 0, "a running request does not wait"
    waiting = await submitted(engine, make_request("waiting"))
    await asyncio.sleep(0.05)
    assert 0.05 <= oldest_s() < 20
    runner.gate.set()
    await soon(asyncio.gather(first, *waiting))
    assert oldest_s() == 0
    await engine.close()
