"""From a batch to outcomes: faulty items, explanations, padding."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import RunFailed
from foveate.core.outcome import Explanation, Outcome, ReductionStage, Result
from foveate.core.plan import Plan
from foveate.core.request import Request
from foveate.engine.executor import padding_ratio
from tests.support.engines import blocked, forward_begins, make_request, running, soon, submitted
from tests.support.fake_runner import FULL, FakeRunner

pytestmark = pytest.mark.anyio


async def test_a_faulty_item_fails_alone() -> None:
    runner = FakeRunner()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        rest = await submitted(engine, make_request("good"), make_request("poison"), make_request("fine"))
        runner.gate.set()
        good, bad, fine = await soon(asyncio.gather(*rest, return_exceptions=True))
        await soon(first)
    assert isinstance(good, Outcome)
    assert isinstance(fine, Outcome)
    assert isinstance(bad, RunFailed)
    assert "poison" not in bad.detail


class Exits(FakeRunner):
    """Calls sys.exit for the media "exit", as code that was written as a script does."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        if "exit" in batch:
            sys.exit(3)
        return super().run(batch, plan)


async def test_a_runner_that_exits_fails_its_batch_and_not_the_server() -> None:
    async with running(Exits()) as engine:
        with pytest.raises(RunFailed):
            await soon(engine.submit(make_request("exit")))
        assert isinstance(await soon(engine.submit(make_request("fine"))), Outcome)


class AcceptsContentPlans(FakeRunner):
    """Accepts plans that leave the rung to the content."""

    def check(self, plan: Plan) -> None:
        super().check(replace(plan, content=None))


BY_CONTENT = replace(FULL, content="0.9")


async def test_a_faulty_item_fails_alone_under_a_content_plan() -> None:
    runner = AcceptsContentPlans(max_batch=2)
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        rest = await submitted(
            engine, *(make_request(media, BY_CONTENT) for media in ("a", "b", "poison", "c", "d"))
        )
        runner.gate.set()
        ended = await soon(asyncio.gather(first, *rest, return_exceptions=True))
    assert [isinstance(end, RunFailed) for end in ended] == [False, False, False, True, False, False]
    assert all(isinstance(end, Outcome | RunFailed) for end in ended)


async def test_a_runner_that_loses_a_result_fails_the_request_and_not_the_engine() -> None:
    class LosesAResult(FakeRunner):
        def run(self, batch: list[Any], plan: Plan) -> list[Any]:
            return super().run(batch, plan)[1:]

    async with running(LosesAResult()) as engine:
        for _ in range(2):
            with pytest.raises(RunFailed):
                await soon(engine.submit(make_request("a")))


class RecordsExplanations(FakeRunner):
    """Explains each item by its position among the explained items."""

    def __init__(self) -> None:
        super().__init__()
        self.explained: list[list[Any]] = []
        self.explain_gate = threading.Event()
        self.explain_gate.set()

    def explain(self, media: Sequence[Any], plan: Plan) -> list[Explanation]:
        assert self.explain_gate.wait(20)
        self.explained.append(list(media))
        if "fails" in media:
            raise ValueError("no explanation")
        explanations = [Explanation((1, 1), (ReductionStage(n, 2, (0,)),), 12) for n, _ in enumerate(media)]
        return explanations[1:] if "loses one" in media else explanations


def explained(media: Any) -> Request:
    return replace(make_request(media), explain=True)


async def test_only_requests_that_ask_are_explained_and_the_others_do_not_wait() -> None:
    runner = RecordsExplanations()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        rest = await submitted(engine, make_request("a"), explained("b"), make_request("c"), explained("d"))
        runner.explain_gate.clear()
        runner.gate.set()
        plain = await soon(asyncio.gather(first, rest[0], rest[2]))
        assert not rest[1].done()
        runner.explain_gate.set()
        explained_outcomes = await soon(asyncio.gather(rest[1], rest[3]))
    assert runner.batches == [["first"], ["a", "b", "c", "d"]]
    assert runner.explained == [["b", "d"]]
    assert [outcome.result.explanation for outcome in plain] == [None] * 3
    assert [o.result.explanation.stages[0].block for o in explained_outcomes if o.result.explanation] == [
        0,
        1,
    ]
    assert [outcome.batch_size for outcome in explained_outcomes] == [4, 4]
    assert all(
        (outcome.result.tokens, outcome.result.exit_layer) == (5, 12) for outcome in explained_outcomes
    )


async def test_cancelled_and_failed_requests_are_not_explained() -> None:
    runner = RecordsExplanations()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        cancelled_task, faulty = await submitted(engine, explained("cancelled"), explained("poison"))
        cancelled_task.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        await soon(first)
        with pytest.raises(RunFailed):
            await soon(faulty)
    assert runner.explained == []


@pytest.mark.parametrize("media", ["fails", "loses one"])
async def test_a_failed_explanation_does_not_fail_the_request(media: str) -> None:
    runner = RecordsExplanations()
    async with running(runner) as engine:
        outcome = await soon(engine.submit(explained(media)))
        assert outcome.result.explanation is None
        assert runner.explained == [[media]]
        again = await soon(engine.submit(explained("next")))
        assert again.result.explanation is not None


async def test_a_runner_without_explanations_still_gives_a_result() -> None:
    async with running(FakeRunner()) as engine:
        outcome = await soon(engine.submit(explained("a")))
    assert outcome.result.explanation is None


async def test_drain_waits_for_explanations_too() -> None:
    runner = RecordsExplanations()
    async with running(runner) as engine:
        runner.explain_gate.clear()
        (waiting,) = await submitted(engine, explained("a"))
        await forward_begins(runner)
        drain = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.01)
        assert not drain.done()
        runner.explain_gate.set()
        outcome, _ = await soon(asyncio.gather(waiting, drain))
    assert outcome.result.explanation is not None


def test_padding_is_counted_among_items_with_the_same_exit() -> None:
    def result(tokens: int, layer: int = 12) -> Result:
        return Result(np.zeros(1, np.float32), tokens, layer, 0.0)

    assert padding_ratio([]) == padding_ratio([RunFailed("no")]) == 0
    assert padding_ratio([result(10), result(10)]) == 0
    assert padding_ratio([result(10), result(5), RunFailed("no")]) == pytest.approx(0.25)
    assert padding_ratio([result(10, 4), result(5), result(5)]) == 0
