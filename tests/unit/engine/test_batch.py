"""One forward: which entries are part of it, and what happens when it fails."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from foveate.core.errors import DeadlineExceeded, RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.engine.batch import ScheduledBatch, run_batch
from foveate.engine.queue import QueueEntry
from foveate.scheduling.policy import BatchDecision
from tests.support.engines import make_request
from tests.support.fake_runner import FULL, FakeRunner

pytestmark = pytest.mark.anyio


async def entry(media: Any, deadline: float | None = None) -> QueueEntry:
    future = asyncio.get_running_loop().create_future()
    return QueueEntry(make_request(media, deadline=deadline), 0.0, 0, future, 0.0)


def batch_of(*entries: QueueEntry, **fields: Any) -> ScheduledBatch:
    return ScheduledBatch(BatchDecision(entries, FULL, False), **fields)


async def test_all_entries_run_in_one_forward() -> None:
    runner, entries = FakeRunner(), [await entry("a"), await entry("b")]
    ran, results = run_batch(runner, batch_of(*entries), lambda: 0.0)
    assert list(ran) == entries and all(isinstance(result, Result) for result in results)
    assert runner.batches == [["a", "b"]] and runner.plans == [FULL]


async def test_a_stacked_input_is_used_only_if_all_its_entries_are_alive() -> None:
    runner, entries = FakeRunner(), [await entry("a"), await entry("b")]
    run_batch(runner, batch_of(*entries, stacked=["stacked a", "stacked b"]), lambda: 0.0)
    entries[0].future.cancel()
    ran, _ = run_batch(runner, batch_of(*entries, stacked=["stacked a", "stacked b"]), lambda: 0.0)
    assert list(ran) == entries[1:]
    assert runner.batches == [["stacked a", "stacked b"], ["b"]]


async def test_an_entry_that_has_expired_is_left_out_even_before_its_timer_fires() -> None:
    runner, late, fine = FakeRunner(), await entry("late", 1.0), await entry("fine", 1.5)
    ran, _ = run_batch(runner, batch_of(late, fine), lambda: 1.0)
    assert list(ran) == [fine] and late.alive
    assert run_batch(runner, batch_of(late), lambda: 1.0) == ((), [])
    assert runner.batches == [["fine"]]


async def test_an_entry_that_expires_while_the_batch_is_stacked_is_left_out() -> None:
    times = iter((0.0, 2.0, 2.0))
    runner, late, fine = FakeRunner(), await entry("late", 1.0), await entry("fine")
    ran, _ = run_batch(runner, batch_of(late, fine), lambda: next(times))
    assert list(ran) == [fine]
    assert runner.batches == [["fine"]]


async def test_after_a_failed_forward_each_entry_that_is_alive_gets_one_of_its_own() -> None:
    runner = FakeRunner()
    entries = [await entry(media) for media in ("a", "poison", "b")]
    ran, results = run_batch(runner, batch_of(*entries), lambda: 0.0)
    assert list(ran) == entries
    assert [type(result) for result in results] == [Result, ValueError, Result]
    assert runner.batches == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]


async def test_after_a_failed_forward_an_expired_entry_gets_no_other() -> None:
    runner, poison, late = FakeRunner(), await entry("poison"), await entry("late", 1.0)
    ran, results = run_batch(runner, batch_of(poison, late), lambda: 2.0 if runner.batches else 0.0)
    assert [type(result) for result in results] == [ValueError, DeadlineExceeded]
    assert len(ran) == 2 and ["late"] not in runner.batches


async def test_a_wrong_number_of_results_is_a_failure() -> None:
    class LosesAnItem(FakeRunner):
        def run(self, batch: list[Any], plan: Plan) -> list[Any]:
            return super().run(batch, plan)[1:]

    _, results = run_batch(LosesAnItem(), batch_of(await entry("a")), lambda: 0.0)
    assert isinstance(results[0], RunFailed) and "0 results for 1 requests" in results[0].detail


async def test_the_runner_is_given_the_number_of_threads_before_the_forward() -> None:
    class CountsThreads(FakeRunner):
        times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[object] = []

        def use(self, threads: int) -> None:
            self.calls.append(threads)

        def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
            self.calls.append(batch)
            return super().run(batch, plan)

        def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
            return list(media)

    runner = CountsThreads()
    run_batch(runner, batch_of(await entry("a"), threads=3), lambda: 0.0)
    assert runner.calls == [3, ["a"]]
