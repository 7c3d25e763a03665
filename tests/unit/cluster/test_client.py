"""Requests travel to workers in groups and back, whatever happens on the way."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic

import numpy as np
import pytest

from foveate.cluster.client import LONGEST_S, RemoteCluster, _Sent
from foveate.cluster.envelope import (
    RequestBatch,
    RequestEnvelope,
    ResponseBatch,
    ResponseEnvelope,
    WorkerLost,
)
from foveate.cluster.local import LocalCluster
from foveate.cluster.worker import Worker, fitting
from foveate.core.errors import (
    BadPlan,
    DeadlineExceeded,
    Draining,
    Overloaded,
    RunFailed,
    SetupError,
    TooLate,
    UnknownModel,
)
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import ClassMaps, Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.estimation.host_load import HostLoadMonitor
from tests.support.fake_runner import FULL, FakeRunner
from tests.support.loopback import Loopback

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0


def asked(name: str = "r", media: object = "picture", **objective: float) -> Request:
    return Request(name, "fake", media, 100, objective=Objective(**objective))  # type: ignore[arg-type]


@asynccontextmanager
async def workers(*runners: FakeRunner, queue_items: int = 64) -> AsyncIterator[list[Worker]]:
    """One worker a runner, started."""
    made = [
        Worker(LocalCluster([lambda runner=runner: runner], Metrics(), queue_items), f"worker {number}")  # type: ignore[misc]
        for number, runner in enumerate(runners)
    ]
    for worker in made:
        await worker.cluster.start()
    try:
        yield made
    finally:
        for runner in runners:
            runner.gate.set()
        for worker in made:
            await worker.cluster.close()


async def over(*links: Loopback) -> RemoteCluster:
    return await RemoteCluster.over(links, HostLoadMonitor())


async def entered(runner: FakeRunner) -> None:
    assert await asyncio.to_thread(runner.entered.acquire, timeout=PATIENCE_S)


async def test_who_leaves_just_as_it_is_sent_harms_nobody() -> None:
    async with workers(FakeRunner()) as made:
        cluster = await over(Loopback(*made))
        leaves, stays = (asyncio.create_task(cluster.submit(asked())) for _ in range(2))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(leaves.cancel)
        await asyncio.wait_for(stays, PATIENCE_S)


async def test_what_comes_at_once_travels_together_and_each_gets_its_own_answer() -> None:
    runner = FakeRunner()
    async with workers(runner) as made:
        link = Loopback(*made)
        cluster = await over(link)
        outcomes = await asyncio.gather(*(cluster.submit(asked(f"r{i}", f"p{i}")) for i in range(8)))
    assert [len(group.envelopes) for group in link.groups] == [8]
    assert sorted(item for batch in runner.batches for item in batch) == [f"p{i}" for i in range(8)]
    assert all(outcome.result.scores[0] == 0.75 for outcome in outcomes)


async def test_a_lone_request_is_sent_at_once_and_those_in_a_hurry_after_it_together() -> None:
    runner = FakeRunner()
    async with workers(runner) as made:
        link = Loopback(*made)
        cluster = await over(link)
        runner.gate.clear()
        first = asyncio.create_task(cluster.submit(asked("first")))
        await entered(runner)
        others = [asyncio.create_task(cluster.submit(asked(f"r{i}"))) for i in range(5)]
        await asyncio.sleep(0.05)
        runner.gate.set()
        await asyncio.gather(first, *others)
    assert [len(group.envelopes) for group in link.groups] == [1, 5]


class Picky(FakeRunner):
    """Runs one at a time, and is held by what is slow only."""

    def __init__(self) -> None:
        super().__init__(max_batch=1)
        self.held = threading.Event()

    def run(self, batch: list[object], plan: Plan) -> list[Result | Exception]:
        assert batch != ["slow"] or self.held.wait(PATIENCE_S)
        return super().run(batch, plan)


async def test_an_answer_does_not_wait_for_the_rest_of_its_group() -> None:
    runner = Picky()
    async with workers(runner) as made:
        link = Loopback(*made)
        cluster = await over(link)
        quick, slow = (asyncio.create_task(cluster.submit(asked(name, name))) for name in ("quick", "slow"))
        await asyncio.wait_for(quick, PATIENCE_S)
        assert len(link.groups) == 1 and not slow.done()
        runner.held.set()
        await slow


async def test_failures_keep_their_kind_and_what_they_say() -> None:
    runner = FakeRunner()
    async with workers(runner, queue_items=1) as made:
        cluster = await over(Loopback(*made))
        with pytest.raises(RunFailed):
            await cluster.submit(asked(media="poison"))
        with pytest.raises(BadPlan, match="no fake@64"):
            await cluster.submit(Request("r", "fake", "p", 1, plan=Plan("fake", 64)))
        with pytest.raises(UnknownModel):
            await cluster.submit(Request("r", "other", "p", 1))
        await entered(runner)
        while runner.entered.acquire(blocking=False):
            pass
        runner.gate.clear()
        held = asyncio.create_task(cluster.submit(asked()))
        await entered(runner)
        queued = asyncio.create_task(cluster.submit(asked()))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as refused:
            await cluster.submit(asked())
        assert refused.value.retry_after_s >= 0
        runner.gate.set()
        await asyncio.gather(held, queued)


async def test_who_leaves_while_it_waits_never_reaches_a_forward() -> None:
    runner = FakeRunner()
    async with workers(runner) as made:
        link = Loopback(*made)
        cluster = await over(link)
        runner.gate.clear()
        first = asyncio.create_task(cluster.submit(asked("first", "first")))
        await entered(runner)
        leaves = asyncio.create_task(cluster.submit(asked("leaves", "leaves")))
        stays = asyncio.create_task(cluster.submit(asked("stays", "stays")))
        await asyncio.sleep(0.05)
        leaves.cancel()
        await asyncio.sleep(0.05)
        assert len(link.forgotten) == 1
        runner.gate.set()
        await asyncio.gather(first, stays)
    assert [item for batch in runner.batches for item in batch] == ["first", "stays"]


async def test_who_leaves_before_it_was_sent_is_not_sent() -> None:
    async with workers(FakeRunner()) as made:
        link = Loopback(*made)
        cluster = await over(link)
        leaves = asyncio.create_task(cluster.submit(asked()))
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        await asyncio.sleep(0.05)
    assert not link.groups and not link.forgotten


async def test_the_same_request_may_come_to_a_worker_twice() -> None:
    runner = FakeRunner()
    async with workers(runner) as (worker,):
        runner.gate.clear()
        group = RequestBatch("gateway", [RequestEnvelope(1, asked(), None)])

        async def all_of() -> list[ResponseBatch]:
            return [answers async for answers in worker.answer(group)]

        first, second = asyncio.create_task(all_of()), asyncio.create_task(all_of())
        await entered(runner)
        runner.gate.set()
        both = await asyncio.wait_for(asyncio.gather(first, second), PATIENCE_S)
    assert [len(answers) for answers in both] == [1, 1]


async def test_a_way_that_was_slow_once_is_not_slow_for_ever() -> None:
    async with workers(FakeRunner()) as made:
        courier = (await over(Loopback(*made))).couriers[0]
        for _ in range(50):
            courier._learn(60.0)
        assert courier.transit_s <= LONGEST_S
        late = ResponseEnvelope(7, TooLate("no time left"))
        for _ in range(50):
            courier._waiting[7] = _Sent(asked(), asyncio.get_running_loop().create_future(), 1, monotonic())
            courier._settle(ResponseBatch("worker", (late,), {}))
            with pytest.raises(TooLate):
                await courier._waiting.pop(7).future
        assert courier.transit_s < 0.01


async def test_large_answers_travel_apart() -> None:
    maps = ClassMaps((0, 1), np.zeros((2, 500, 500), np.float16))
    outcome = Outcome(Result(np.zeros(1, np.float32), 1, 1, 0.0, maps=maps), FULL, Timings(0, 0), 1)
    assert fitting([ResponseEnvelope(number, outcome) for number in range(9)]) == 3
    assert fitting([ResponseEnvelope(0, RunFailed("no"))] * 9) == 9


class Silent(Loopback):
    """Its worker takes everything and answers nothing."""

    async def send(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        self.groups.append(group)
        await asyncio.Event().wait()
        yield ResponseBatch("", (), {})


async def test_at_the_deadline_it_is_over_whatever_the_worker_does() -> None:
    async with workers(FakeRunner()) as made:
        cluster = await over(Silent(*made))
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(cluster.submit(asked(deadline=monotonic() + 0.1)), PATIENCE_S)
        await cluster.close()


class Broken(Loopback):
    """A way that fails, and says nothing that anybody knows."""

    async def send(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        self.groups.append(group)
        if len(self.groups) % 2:
            raise ValueError("no such thing")
        async for answers in super().send(group):
            yield answers


async def test_a_way_that_fails_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async with workers(FakeRunner()) as made:
        cluster = await over(Broken(*made))
        await asyncio.wait_for(cluster.submit(asked()), PATIENCE_S)
    assert "did not come through" in caplog.text


async def test_an_idle_worker_is_not_forgotten_beside_a_busy_one() -> None:
    async with workers(FakeRunner()) as made:
        courier = (await over(Loopback(*made))).couriers[0]
        courier._settle(ResponseBatch("idle", (), {"fake": 0.2}))
        await asyncio.sleep(0.3)
        courier._settle(ResponseBatch("busy", (), {"fake": 9.0}))
        assert courier.ahead_s("fake") == 0


async def test_deadlines_travel_as_seconds_less_what_the_way_takes() -> None:
    async with workers(FakeRunner()) as made:
        link = Loopback(*made)
        cluster = await over(link)
        cluster.couriers[0].transit_s = 0.2
        await cluster.submit(asked(deadline=monotonic() + 5))
        (envelope,) = link.groups[0].envelopes
    assert envelope.left_s == pytest.approx(4.8, abs=0.1)


async def test_what_a_lost_worker_had_is_answered_by_another_one() -> None:
    dies, lives = FakeRunner(), FakeRunner()
    async with workers(dies, lives) as made:
        link = Loopback(*made)
        cluster = await over(link)
        dies.gate.clear()
        waits = [asyncio.create_task(cluster.submit(asked(f"r{i}", f"p{i}"))) for i in range(3)]
        await entered(dies)
        link.lost.set()
        await asyncio.wait_for(asyncio.gather(*waits), PATIENCE_S)
    assert sorted(item for batch in lives.batches for item in batch) == ["p0", "p1", "p2"]


async def test_twice_is_all_that_is_tried() -> None:
    first, second = FakeRunner(), FakeRunner()
    async with workers(first, second, FakeRunner()) as made:
        link = Loopback(*made)
        cluster = await over(link)
        for runner in (first, second):
            runner.gate.clear()
        waits = asyncio.create_task(cluster.submit(asked()))
        for runner in (first, second):
            await entered(runner)
            link.lost.set()
        with pytest.raises(WorkerLost) as lost:
            await asyncio.wait_for(waits, PATIENCE_S)
    assert lost.value.status == 503 and lost.value.retry_after_s > 0


async def test_who_has_no_time_left_is_not_tried_again() -> None:
    dies, lives = FakeRunner(), FakeRunner()
    async with workers(dies, lives) as made:
        link = Loopback(*made)
        cluster = await over(link)
        dies.gate.clear()
        waits = asyncio.create_task(cluster.submit(asked(deadline=monotonic() + 0.2)))
        await entered(dies)
        with pytest.raises(DeadlineExceeded):
            await waits
        link.lost.set()
        await asyncio.sleep(0.05)
    assert not lives.batches


async def test_a_worker_that_leaves_sends_newcomers_to_the_next() -> None:
    leaves, stays = FakeRunner(), FakeRunner()
    async with workers(leaves, stays) as made:
        link = Loopback(*made)
        cluster = await over(link)
        await made[0].cluster.drain(1)

        class Turns(Loopback):
            async def send(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
                async for answers in super().send(group):
                    self.workers = self.workers[::-1]
                    yield answers

        link.__class__ = Turns
        await cluster.submit(asked())
    assert not leaves.batches and len(stays.batches) == 1


async def test_what_the_workers_tell_of_their_queues_turns_away_who_would_be_late() -> None:
    runner = FakeRunner()
    async with workers(runner) as made:
        link = Loopback(*made)
        cluster = await over(link)
        courier = cluster.couriers[0]
        cluster.reserve("fake", Objective(monotonic() + 0.1), None, 0.0)  # nobody knows better
        courier._settle(ResponseBatch("worker", (), {"fake": 3.0}))
        with pytest.raises(TooLate) as refused:
            cluster.reserve("fake", Objective(monotonic() + 1.0), None, 0.0)
        assert refused.value.retry_after_s == pytest.approx(2, abs=0.2)
        cluster.reserve("fake", Objective(monotonic() + 5.0), None, 0.0)
        cluster.reserve("fake", Objective(), None, 0.0)
        courier._settle(ResponseBatch("another", (), {"fake": 0.0}))
        cluster.reserve("fake", Objective(monotonic() + 1.0), None, 0.0)
        with pytest.raises(DeadlineExceeded):
            cluster.reserve("fake", Objective(monotonic() - 1), None, 0.0)
        await asyncio.sleep(0.05)
    (group,) = link.groups
    assert not group.envelopes and len(group.refused["fake"]) == 1


async def test_whom_a_gateway_turns_away_is_demand_at_the_worker() -> None:
    metrics, runner = Metrics(), FakeRunner()
    local = LocalCluster([lambda: runner], metrics)
    await local.start()
    cluster = await over(Loopback(Worker(local, "worker")))

    def demand() -> float:
        return metrics.registry.get_sample_value("foveate_full_quality_seconds_total", {"model": "fake"}) or 0

    await cluster.submit(asked())
    each = demand()
    assert each > 0
    cluster.couriers[0].refuse("fake", 1.0)
    await asyncio.sleep(0.05)
    assert demand() > each
    await local.close()


async def test_a_drain_waits_for_answers_and_refuses_newcomers() -> None:
    runner = FakeRunner()
    async with workers(runner) as made:
        cluster = await over(Loopback(*made))
        runner.gate.clear()
        waits = asyncio.create_task(cluster.submit(asked()))
        await entered(runner)
        assert not await cluster.drain(0.05)
        assert not cluster.ready
        with pytest.raises(Draining):
            await cluster.submit(asked())
        threading.Timer(0.05, runner.gate.set).start()
        assert await cluster.drain(PATIENCE_S)
        await waits


async def test_closing_fails_who_waits() -> None:
    async with workers(FakeRunner()) as made:
        cluster = await over(Silent(*made))
        waits = asyncio.create_task(cluster.submit(asked()))
        await asyncio.sleep(0.05)
        await cluster.close()
        with pytest.raises(Draining):
            await waits


async def test_large_media_travel_in_groups_of_their_own() -> None:
    async with workers(FakeRunner()) as made:
        link = Loopback(*made)
        cluster = await over(link)
        many = [Request(f"r{i}", "fake", "p", 3 * 2**19) for i in range(5)]
        await asyncio.gather(*(cluster.submit(request) for request in many))
    assert [len(group.envelopes) for group in link.groups] == [2, 2, 1]


async def test_two_deployments_may_not_serve_models_of_the_same_name() -> None:
    async with workers(FakeRunner(), FakeRunner()) as (one, other):
        with pytest.raises(SetupError):
            await over(Loopback(one), Loopback(other))


async def test_the_first_deployments_model_is_the_default() -> None:
    async with workers(FakeRunner("b"), FakeRunner("a")) as (one, other):
        cluster = await over(Loopback(one), Loopback(other))
        cards: Sequence[ModelCard] = tuple(cluster.cards().values())
    assert [card.name for card in cards] == ["b", "a"]
