"""The engine on a fake runner: batching, failures, deadlines, cancellation, drain."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

import numpy as np
import pytest

from foveate.core.errors import (
    BadPlan,
    DeadlineExceeded,
    Draining,
    FoveateError,
    Overloaded,
    RunFailed,
    TooLate,
)
from foveate.core.metrics import Metrics
from foveate.core.outcome import Explanation, Outcome, ReductionStage, Result
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.executor import padding_ratio
from foveate.estimation.arrivals import ArrivalStats
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import BatchDecision, W
from foveate.scheduling.slo_policy import SloPolicy
from tests.support.fake_runner import FULL, HALF, RUNGS, FakeRunner

pytestmark = pytest.mark.anyio
T = TypeVar("T")


def ask(media: Any, plan: Plan | None = None, deadline: float | None = None, size: int = 1) -> Request:
    return Request("id", "fake", media, size, objective=Objective(deadline), plan=plan)


@asynccontextmanager
async def running(runner: FakeRunner, **limits: Any) -> AsyncIterator[Engine]:
    engine = Engine(runner, Metrics(), **limits)
    engine.start()
    try:
        yield engine
    finally:
        runner.gate.set()
        await engine.close()


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, 20)


async def entered(runner: FakeRunner) -> None:
    """Return once the runner has begun one more forward."""
    assert await asyncio.to_thread(runner.entered.acquire, timeout=20)


async def submitted(engine: Engine, *requests: Request) -> list[asyncio.Task[Outcome]]:
    """Tasks whose requests are admitted already."""
    tasks = [asyncio.create_task(engine.submit(request)) for request in requests]
    await asyncio.sleep(0)
    return tasks


async def held(engine: Engine, runner: FakeRunner) -> asyncio.Task[Outcome]:
    """One request that is running and will not end until the gate opens."""
    runner.gate.clear()
    (first,) = await submitted(engine, ask("first"))
    await entered(runner)
    return first


async def test_a_lone_request_goes_alone_and_at_once() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        outcome = await soon(engine.submit(ask("a")))
    assert runner.batches == [["a"]]
    assert outcome.batch_size == 1
    assert outcome.plan == FULL


async def test_what_waits_is_batched_in_order_of_arrival() -> None:
    runner = FakeRunner(max_batch=4)
    async with running(runner) as engine:
        first = await held(engine, runner)
        rest = await submitted(engine, *(ask(i) for i in range(6)))
        runner.gate.set()
        await soon(asyncio.gather(first, *rest))
    assert runner.batches == [["first"], [0, 1, 2, 3], [4, 5]]


async def test_a_batch_that_is_not_full_waits_for_the_runner_not_the_other_way_round() -> None:
    runner = FakeRunner(max_batch=4)
    async with running(runner) as engine:
        first = await held(engine, runner)
        early = await submitted(engine, ask("early"))
        late = await submitted(engine, ask("late"))
        runner.gate.set()
        await soon(asyncio.gather(first, *early, *late))
    assert runner.batches == [["first"], ["early", "late"]]


async def test_plans_do_not_mix_in_a_batch() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await held(engine, runner)
        rest = await submitted(engine, ask(1, FULL), ask(2, HALF), ask(3, FULL))
        runner.gate.set()
        outcomes = await soon(asyncio.gather(first, *rest))
    assert runner.batches == [["first"], [1, 3], [2]]
    assert [outcome.plan for outcome in outcomes[1:]] == [FULL, HALF, FULL]


class Contented(FakeRunner):
    """It can leave the rung to the content."""

    def check(self, plan: Plan) -> None:
        super().check(replace(plan, content=None))


BY_CONTENT = replace(FULL, content="0.9")


async def test_one_bad_item_among_many_fails_alone_under_a_content_plan_too() -> None:
    runner = Contented(max_batch=2)
    async with running(runner) as engine:
        first = await held(engine, runner)
        rest = await submitted(engine, *(ask(media, BY_CONTENT) for media in ("a", "b", "poison", "c", "d")))
        runner.gate.set()
        ended = await soon(asyncio.gather(first, *rest, return_exceptions=True))
    assert [isinstance(end, RunFailed) for end in ended] == [False, False, False, True, False, False]
    assert all(isinstance(end, Outcome | RunFailed) for end in ended)


async def test_one_bad_item_fails_alone() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await held(engine, runner)
        rest = await submitted(engine, ask("good"), ask("poison"), ask("fine"))
        runner.gate.set()
        good, bad, fine = await soon(asyncio.gather(*rest, return_exceptions=True))
        await soon(first)
    assert isinstance(good, Outcome)
    assert isinstance(fine, Outcome)
    assert isinstance(bad, RunFailed)
    assert "poison" not in bad.detail


async def test_a_runner_that_loses_an_item_fails_the_request_and_not_the_engine() -> None:
    class Forgetful(FakeRunner):
        def run(self, batch: list[Any], plan: Plan) -> list[Any]:
            return super().run(batch, plan)[1:]

    async with running(Forgetful()) as engine:
        for _ in range(2):
            with pytest.raises(RunFailed):
                await soon(engine.submit(ask("a")))


class Explaining(FakeRunner):
    """Tells of each item its place among those it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[Any]] = []
        self.telling = threading.Event()
        self.telling.set()

    def explain(self, media: Sequence[Any], plan: Plan) -> list[Explanation]:
        assert self.telling.wait(20)
        self.asked.append(list(media))
        if "riddle" in media:
            raise ValueError("nobody knows")
        told = [Explanation((1, 1), (ReductionStage(n, 2, (0,)),), 12) for n, _ in enumerate(media)]
        return told[1:] if "lost" in media else told


def curious(media: Any, plan: Plan | None = None) -> Request:
    return replace(ask(media, plan), explain=True)


async def test_only_who_asks_is_explained_to_and_others_do_not_wait_for_it() -> None:
    runner = Explaining()
    async with running(runner) as engine:
        first = await held(engine, runner)
        rest = await submitted(engine, ask("a"), curious("b"), ask("c"), curious("d"))
        runner.telling.clear()
        runner.gate.set()
        plain = await soon(asyncio.gather(first, rest[0], rest[2]))
        assert not rest[1].done()
        runner.telling.set()
        told = await soon(asyncio.gather(rest[1], rest[3]))
    assert runner.batches == [["first"], ["a", "b", "c", "d"]]
    assert runner.asked == [["b", "d"]]
    assert [outcome.result.explanation for outcome in plain] == [None] * 3
    assert [o.result.explanation.stages[0].block for o in told if o.result.explanation] == [0, 1]
    assert [outcome.batch_size for outcome in told] == [4, 4]
    assert all((outcome.result.tokens, outcome.result.exit_layer) == (5, 12) for outcome in told)


async def test_no_explanation_is_made_where_nobody_asks_or_nobody_waits() -> None:
    runner = Explaining()
    async with running(runner) as engine:
        first = await held(engine, runner)
        gone, bad = await submitted(engine, curious("gone"), curious("poison"))
        gone.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(first)
        with pytest.raises(RunFailed):
            await soon(bad)
    assert runner.asked == []


@pytest.mark.parametrize("media", ["riddle", "lost"])
async def test_an_explanation_that_fails_does_not_fail_the_answer(media: str) -> None:
    runner = Explaining()
    async with running(runner) as engine:
        outcome = await soon(engine.submit(curious(media)))
        assert outcome.result.explanation is None
        assert runner.asked == [[media]]
        again = await soon(engine.submit(curious("next")))
        assert again.result.explanation is not None


async def test_a_runner_that_cannot_explain_answers_all_the_same() -> None:
    async with running(FakeRunner()) as engine:
        outcome = await soon(engine.submit(curious("a")))
    assert outcome.result.explanation is None


async def test_drain_waits_for_explanations_too() -> None:
    runner = Explaining()
    async with running(runner) as engine:
        runner.telling.clear()
        (waiting,) = await submitted(engine, curious("a"))
        await entered(runner)
        drain = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.01)
        assert not drain.done()
        runner.telling.set()
        outcome, _ = await soon(asyncio.gather(waiting, drain))
    assert outcome.result.explanation is not None


async def test_a_cancelled_request_never_reaches_a_forward() -> None:
    runner = FakeRunner(max_batch=2)
    async with running(runner) as engine:
        first = await held(engine, runner)
        gone, stays = await submitted(engine, ask("gone"), ask("stays"))
        gone.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(asyncio.gather(first, stays))
        assert gone.cancelled()
        assert len(engine.queue) == 0
        assert not engine.busy
    assert runner.batches == [["first"], ["stays"]]


async def test_a_request_cancelled_after_staging_never_reaches_a_forward() -> None:
    runner = FakeRunner(max_batch=2)
    async with running(runner) as engine:
        first = await held(engine, runner)
        gone, stays = await submitted(engine, ask("gone"), ask("stays"))  # a full batch: staged ahead
        while len(engine.queue):
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(asyncio.gather(first, stays))
    assert runner.batches == [["first"], ["stays"]]


async def test_a_storm_of_cancellations_leaves_the_next_requests_unharmed() -> None:
    runner = FakeRunner()
    async with running(runner, max_items=2000) as engine:
        first = await held(engine, runner)
        storm = await submitted(engine, *(ask(i) for i in range(1000)))
        for task in storm:
            task.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(first)
        outcome = await soon(engine.submit(ask("after")))
    assert outcome.batch_size == 1
    assert runner.batches == [["first"], ["after"]]


async def test_engines_that_share_a_device_run_nothing_that_died_while_they_waited_for_it() -> None:
    compute, busy, quiet = DeviceExecutor(), FakeRunner("busy"), FakeRunner("quiet")
    async with running(busy, compute=compute) as first, running(quiet, compute=compute) as second:
        holding = await held(first, busy)
        gone, late = await submitted(second, ask("gone"), ask("late", deadline=second.clock() + 0.02))
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            await soon(late)
        busy.gate.set()
        await soon(holding)
        await soon(second.submit(ask("alive")))
    assert quiet.batches == [["alive"]]


async def test_a_deadline_ends_the_wait_even_though_the_runner_is_stuck() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await held(engine, runner)
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(ask("late", deadline=engine.clock() + 0.01)))
        assert len(engine.queue) == 0
        runner.gate.set()
        await soon(first)
    assert runner.batches == [["first"]]


async def test_a_deadline_bounds_the_answer_and_not_only_the_wait() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        runner.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(ask("slow", deadline=engine.clock() + 0.05)))
        runner.gate.set()
        await soon(engine.submit(ask("next")))


async def test_a_deadline_in_the_past_is_not_admitted() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(ask("late", deadline=engine.clock() - 1)))
    assert runner.batches == []


@pytest.mark.parametrize(("limits", "size"), [({"max_items": 2}, 1), ({"max_bytes": 20}, 10)])
async def test_a_full_queue_refuses_and_says_when_to_come_back(limits: dict[str, int], size: int) -> None:
    runner = FakeRunner(max_batch=8)
    async with running(runner, **limits) as engine:
        first = await held(engine, runner)
        waiting = await submitted(engine, ask(1, size=size), ask(2, size=size))
        with pytest.raises(Overloaded) as refused:
            await soon(engine.submit(ask(3, size=size)))
        assert refused.value.retry_after_s > 0
        runner.gate.set()
        await soon(asyncio.gather(first, *waiting))
        assert engine.queue.bytes == 0


async def test_an_unknown_plan_is_refused_at_admission() -> None:
    async with running(FakeRunner()) as engine:
        with pytest.raises(BadPlan):
            await soon(engine.submit(ask("a", Plan("fake", 32, reducer="tome:8"))))


async def test_drain_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await held(engine, runner)
        (waiting,) = await submitted(engine, ask("waiting"))
        drain = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await soon(engine.submit(ask("new")))
        assert not drain.done()
        runner.gate.set()
        await soon(asyncio.gather(first, waiting, drain))
    assert runner.batches == [["first"], ["waiting"]]


async def test_closing_leaves_nobody_waiting() -> None:
    runner = FakeRunner()
    engine = Engine(runner, Metrics())
    engine.start()
    first = await held(engine, runner)
    (waiting,) = await submitted(engine, ask("waiting"))
    await engine.close()
    for task in (first, waiting):
        with pytest.raises(FoveateError):
            await soon(task)
    runner.gate.set()


async def test_gauges_fall_when_requests_leave() -> None:
    runner, metrics = FakeRunner(), Metrics()
    engine = Engine(runner, metrics)
    engine.start()
    value = metrics.registry.get_sample_value
    first = await held(engine, runner)
    (gone,) = await submitted(engine, ask("gone", size=7))
    assert value("foveate_waiting", {"model": "fake"}) == 1
    assert value("foveate_waiting_bytes", {"model": "fake"}) == 7
    gone.cancel()
    await asyncio.sleep(0)
    assert value("foveate_waiting", {"model": "fake"}) == 0
    assert value("foveate_waiting_bytes", {"model": "fake"}) == 0
    runner.gate.set()
    await soon(first)
    await soon(engine.drain())
    assert value("foveate_running", {"model": "fake"}) == 0
    await engine.close()


def slow(runner: FakeRunner, seconds: float) -> FakeRunner:
    """The same, on whose profile every batch takes so long."""
    ladder = tuple(replace(rung, latency_s={1: seconds, 8: seconds}) for rung in runner.card.ladder)
    runner.card = replace(runner.card, ladder=ladder)
    return runner


async def test_what_cannot_be_in_time_is_refused_at_once_and_told_how_long_it_would_wait() -> None:
    runner = slow(FakeRunner(), 0.5)
    async with running(runner) as engine:
        first = await held(engine, runner)
        now = engine.clock()
        with pytest.raises(TooLate) as refused:
            await soon(engine.submit(ask("hopeless", deadline=now + 0.8)))
        with pytest.raises(TooLate):
            engine.reserve(Objective(now + 0.8), None, 0.0)
        engine.reserve(Objective(now + 5), None, 1.0)
        with pytest.raises(TooLate):
            engine.reserve(Objective(now + 5), None, 4.6)
        fine = await submitted(engine, ask("fine", deadline=now + 20))
        runner.gate.set()
        await soon(asyncio.gather(first, *fine))
    assert 0.3 < refused.value.retry_after_s <= 0.5
    assert runner.batches == [["first"], ["fine"]]


async def test_a_tight_deadline_gets_a_cheaper_plan_and_a_floor_keeps_it() -> None:
    ladder = (replace(RUNGS[0], latency_s={1: 0.01}), replace(RUNGS[1], latency_s={1: 60.0}))
    runner = FakeRunner()
    runner.card = replace(runner.card, ladder=ladder)
    async with running(runner) as engine:
        tight = await soon(engine.submit(ask("tight", deadline=engine.clock() + 5)))
        kept = replace(ask("kept"), objective=Objective(None, 0.95))
        free = await soon(engine.submit(kept))
        with pytest.raises(TooLate):
            await soon(engine.submit(replace(kept, objective=Objective(engine.clock() + 5, 0.95))))
    assert tight.plan == HALF
    assert tight.reason in ("deadline", "load")
    assert free.plan == FULL


class Broken(SloPolicy):
    """Fails once something waits."""

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        if waiting:
            raise ZeroDivisionError
        return None


async def test_a_policy_that_fails_leaves_nobody_waiting_and_nobody_is_let_in_any_more() -> None:
    async with running(FakeRunner(), policy=Broken) as engine:
        with pytest.raises(RunFailed):
            await soon(engine.submit(ask("first")))
        assert not engine.serving
        with pytest.raises(Draining):
            await soon(engine.submit(ask("second")))
        await soon(engine.drain())


async def test_a_machine_that_was_slow_for_a_moment_is_not_taken_to_be_slow_for_ever() -> None:
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
        await soon(engine.submit(ask("first", deadline=engine.clock() + 5)))


async def test_a_request_that_nothing_could_save_is_no_load() -> None:
    async with running(FakeRunner()) as engine:
        for _ in range(50):
            with pytest.raises(TooLate):
                engine.reserve(Objective(engine.clock() + 1e-5), None, 0.0)
        assert engine.flow.read(engine.clock()).rate == 0


async def test_engines_that_share_a_device_know_what_it_is_busy_with() -> None:
    compute, busy, quiet = DeviceExecutor(), slow(FakeRunner("busy"), 0.5), FakeRunner("quiet")
    async with running(busy, compute=compute) as first, running(quiet, compute=compute) as second:
        holding = await held(first, busy)
        waiting = await submitted(second, ask("one"))
        await asyncio.sleep(0.01)
        assert 0.3 < second.free_at - second.clock() <= 0.51
        before = second.latency.predict(FULL, 1)
        busy.gate.set()
        await soon(asyncio.gather(holding, *waiting))
        assert second.latency.predict(FULL, 1) < 10 * before, "waiting for the device is no slower forward"
        assert compute.others(second).any and not len(compute.others(second).virtual_deadline)


class Stacking(FakeRunner):
    """Takes its time to stack."""

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        time.sleep(0.3)
        return super().stack(media, plan)


async def test_the_device_does_not_wait_for_what_one_of_its_models_makes_ready() -> None:
    compute, first, second = DeviceExecutor(), Stacking("first", max_batch=2), FakeRunner("second")
    async with running(first, compute=compute) as one, running(second, compute=compute) as other:
        first.gate.clear()
        asked = await submitted(one, *(ask(number) for number in range(6)))
        await entered(first)
        await asyncio.sleep(0.05)  # the next two are bound, and being stacked
        first.gate.set()
        await soon(asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED))
        began = time.monotonic()
        await soon(other.submit(ask("quick", deadline=other.clock() + 5)))
        assert time.monotonic() - began < 0.2
        await soon(asyncio.gather(*asked))


class Looking(FakeRunner):
    """Notes, as each forward begins, how long the device is said to be taken."""

    engine: Engine

    def run(self, batch: list[Any], plan: Plan) -> list[Any]:
        self.taken_s.append(self.engine.free_at - self.engine.clock())
        return super().run(batch, plan)

    def __init__(self) -> None:
        super().__init__()
        self.taken_s: list[float] = []


async def test_what_is_bound_ahead_counts_until_it_runs() -> None:
    """The next batch is taken before the one before it has begun; both take half a second."""
    runner = Looking()
    slow(runner, 0.5)
    async with running(runner) as engine:
        runner.engine = engine
        first = await held(engine, runner)
        others = await submitted(engine, *(ask(n) for n in range(12)))
        runner.gate.set()
        await soon(asyncio.gather(first, *others))
    assert [len(batch) for batch in runner.batches] == [1, 4, 4, 4]
    assert runner.taken_s[1] > 0.7
    assert runner.taken_s[3] < 0.6, "nothing is bound behind the last"


async def test_no_forward_is_spent_on_who_is_late_or_gone() -> None:
    """Of hundreds with deadlines around what can be kept, many expire or leave; none of them is run."""
    runner, random = FakeRunner(max_batch=4), Random(0)
    async with running(runner, max_items=2000) as engine:
        first = await held(engine, runner)
        now = engine.clock()
        tasks = await submitted(
            engine, *(ask(i, deadline=now + random.choice((0.02, 0.05, 30.0))) for i in range(300))
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


def test_padding_is_counted_among_those_who_left_together() -> None:
    def result(tokens: int, layer: int = 12) -> Result:
        return Result(np.zeros(1, np.float32), tokens, layer, 0.0)

    assert padding_ratio([]) == padding_ratio([RunFailed("no")]) == 0
    assert padding_ratio([result(10), result(10)]) == 0
    assert padding_ratio([result(10), result(5), RunFailed("no")]) == pytest.approx(0.25)
    assert padding_ratio([result(10, 4), result(5), result(5)]) == 0
