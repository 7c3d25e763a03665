"""Work that takes far too long: limits, refusals, recovery."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from foveate.core.errors import DeadlineExceeded, DeviceHung, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.outcome import Explanation, Outcome, Result
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.hang import HANG_FACTOR, RESTART_FACTOR, STALL_S, DeviceWork, HangDetector, HangLimits
from tests.support.engines import (
    blocked,
    forward_begins,
    make_request,
    running,
    soon,
    submitted,
    with_latency,
)
from tests.support.fake_runner import FULL, FakeRunner

pytestmark = pytest.mark.anyio
SHORT = HangLimits(0.5, 1000.0)
NEVER = HangLimits(1000.0, 1000.0)


async def until_hanging(device: DeviceExecutor) -> None:
    async with asyncio.timeout(20):
        while not device.hangs.hangs:
            await asyncio.sleep(0.01)


async def until_lost(device: DeviceExecutor) -> None:
    async with asyncio.timeout(20):
        while not device.hangs.lost:
            await asyncio.sleep(0.01)


def test_long_predictions_extend_the_limits() -> None:
    limits = HangLimits(30, 120)
    assert limits.of(0.02) == (30, 120)
    assert limits.of(5.0) == (5 * HANG_FACTOR, 5 * RESTART_FACTOR)
    assert HangLimits(300, 120).of(0.02) == (300, 300)


async def test_a_hang_refuses_requests_of_all_models_of_the_device_at_once() -> None:
    device = DeviceExecutor(hang_limits=SHORT)
    busy, quiet = FakeRunner("busy", max_batch=2), FakeRunner("quiet")
    async with running(busy, device=device) as first, running(quiet, device=device) as second:
        inside = await blocked(first, busy)
        waiting = await submitted(first, *(make_request(n) for n in range(4)))  # two of them are prefetched
        waiting += await submitted(second, make_request("other", deadline=second.clock() + 60))
        for task in waiting:
            with pytest.raises(DeviceHung) as refused:
                await soon(task)
            assert refused.value.status == 503 and refused.value.retry_after_s > 0
            assert "busy" in refused.value.detail
        for engine in (first, second):
            with pytest.raises(DeviceHung):
                await engine.submit(make_request("new"))
            with pytest.raises(DeviceHung):
                engine.reserve(Objective(), None, 0.0)
        assert not inside.done(), "the batch may still end"
        busy.gate.set()
        await soon(inside)
        await soon(asyncio.gather(first.submit(make_request("after")), second.submit(make_request("after"))))
        assert not device.hangs.hangs
    assert busy.batches == [["first"], ["after"]] and quiet.batches == [["after"]]


async def test_a_deadline_ends_a_request_in_a_batch_that_hangs() -> None:
    device, runner = DeviceExecutor(hang_limits=SHORT), FakeRunner()
    async with running(runner, device=device) as engine:
        runner.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await soon(engine.submit(make_request("inside", deadline=engine.clock() + 1.5)))
        assert device.hangs.hangs


async def test_after_the_second_limit_the_requests_of_the_batch_fail_and_a_drain_does_not_wait() -> None:
    device, runner = DeviceExecutor(hang_limits=HangLimits(0.5, 1)), FakeRunner(max_batch=2)
    async with running(runner, device=device) as engine:
        inside = await blocked(engine, runner)
        waiting = await submitted(engine, *(make_request(n) for n in range(4)))
        async with asyncio.timeout(20):
            while engine.backlog.prefetched is None:
                await asyncio.sleep(0.01)
        with pytest.raises(RunFailed, match="given it up"):
            await soon(inside)
        await asyncio.wait(waiting)
        assert device.hangs.lost and not engine.busy
        await soon(engine.drain())


async def test_a_hang_is_counted_and_logged_with_model_and_plan(caplog: pytest.LogCaptureFixture) -> None:
    device, runner, metrics = DeviceExecutor(hang_limits=HangLimits(0.05, 0.2)), FakeRunner(), Metrics()
    value = metrics.registry.get_sample_value
    engine = Engine(runner, metrics, device=device)
    engine.start()
    inside = await blocked(engine, runner)
    await until_lost(device)
    assert value("foveate_hangs_total", {"model": "fake", "rung": "full"}) == 1
    assert value("foveate_hanging", {"model": "fake"}) == 1
    runner.gate.set()
    with pytest.raises(RunFailed):
        await soon(inside)
    await soon(device.hangs.wait_responds())
    assert value("foveate_hanging", {"model": "fake"}) == 0
    levels = {record.levelno for record in caplog.records if f"for fake under {FULL}" in record.getMessage()}
    assert levels == {logging.WARNING, logging.ERROR, logging.CRITICAL}
    await engine.close()


class SlowToExplain(FakeRunner):
    """An explanation waits for the gate of the runner, as a forward does."""

    def explain(self, media: Sequence[Any], plan: Plan) -> list[Explanation]:
        self.entered.release()
        assert self.gate.wait(20)
        return [Explanation((1, 1), (), 12) for _ in media]

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        results = super().run(batch, plan)
        self.gate.clear()
        return results


async def test_a_lost_explanation_leaves_its_request_the_answer() -> None:
    device, runner = DeviceExecutor(hang_limits=HangLimits(0.05, 0.2)), SlowToExplain()
    async with running(runner, device=device) as engine:
        explained = replace(make_request("explained"), explain=True)
        outcome = await soon(engine.submit(explained))
        assert outcome.result.explanation is None and outcome.result.scores[0] == 0.75
        assert device.hangs.lost


class HangsInStack(FakeRunner):
    """`stack` waits for the gate where a batch has the media "slow"."""

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        if "slow" in media:
            self.stacking.release()
            assert self.gate.wait(20)
        return super().stack(media, plan)

    @property
    def stacking(self) -> Any:
        return self.entered


async def test_stacking_that_hangs_ahead_of_its_batch_is_a_hang_too() -> None:
    device, runner = DeviceExecutor(hang_limits=SHORT), HangsInStack(max_batch=2)
    async with running(runner, device=device) as engine:
        first = await blocked(engine, runner)
        waiting = await submitted(engine, make_request("slow"), make_request("slow"))
        await forward_begins(runner)  # the two are prefetched and being stacked
        await until_hanging(device)
        for task in waiting:
            with pytest.raises(DeviceHung):
                await soon(task)
        runner.gate.set()
        await soon(first)
        await soon(device.hangs.wait_responds())
        await soon(engine.submit(make_request("after")))


async def test_a_process_that_stood_still_is_not_mistaken_for_a_hang() -> None:
    """A paused container: the event loop and the thread of the forward both stand still."""
    errors: list[DeviceHung] = []
    detector = HangDetector(HangLimits(0.2, 1000), errors.append)
    with detector.watch(DeviceWork("fake", FULL, 1, 0.0)):
        time.sleep(0.3 + STALL_S)  # noqa: ASYNC251
        await asyncio.sleep(0.05)
        assert not detector.hangs
        async with asyncio.timeout(20):
            while not errors:
                await asyncio.sleep(0.01)
        assert detector.hangs and "fake" in detector.describe()
    assert not detector.hangs and not detector.describe()


class SlowRunner(FakeRunner):
    """Sleeps in each forward. A batch with the media "poison" fails after that."""

    def __init__(self, seconds: Sequence[float], predicted_s: float) -> None:
        """seconds: of each forward. predicted_s: for batches of any size."""
        super().__init__()
        with_latency(self, predicted_s)
        self.seconds = list(seconds)

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        time.sleep(self.seconds.pop(0))
        return super().run(batch, plan)


async def test_a_first_run_that_takes_longer_than_predicted_is_not_a_hang(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It compiles or prepares kernels: it may take several times as long as the batches that were timed."""
    device, runner = DeviceExecutor(hang_limits=HangLimits(0.02, 0.02)), SlowRunner([0.8, 0], 0.2)
    async with running(runner, device=device) as engine:
        first = await submitted(engine, make_request("first"))
        await asyncio.sleep(0.1)
        later = await submitted(engine, make_request("later"))
        await soon(asyncio.gather(*first, *later))
    assert "hangs" not in caplog.text
    assert runner.batches == [["first"], ["later"]]


async def test_items_that_run_one_by_one_after_their_batch_failed_are_not_a_hang(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Together they may take as long as one batch for each item, and then some."""
    predicted_s, alone_s = 0.1, 0.3
    assert HANG_FACTOR * predicted_s < 4 * alone_s, "one batch may not take that long"
    device = DeviceExecutor(hang_limits=HangLimits(0.02, 0.02))
    runner = SlowRunner([0, 0, *[alone_s] * 4], predicted_s)
    async with running(runner, device=device) as engine:
        inside = await blocked(engine, runner)
        waiting = await submitted(engine, *(make_request(n) for n in ("a", "b", "c", "poison")))
        runner.gate.set()
        *answers, failed = await soon(asyncio.gather(*waiting, return_exceptions=True))
        await soon(inside)
        assert [type(answer) for answer in answers] == [Outcome] * 3 and isinstance(failed, RunFailed)
    assert "hangs" not in caplog.text
    assert runner.batches == [["first"], ["a", "b", "c", "poison"], ["a"], ["b"], ["c"], ["poison"]]


async def test_work_in_time_leaves_nothing_behind() -> None:
    detector = HangDetector(NEVER, lambda _: pytest.fail("no hang"))
    for _ in range(3):
        with detector.watch(DeviceWork("fake", FULL, 1, 0.0)):
            assert detector.describe() == f"a batch of 1 for fake under {FULL} has been running for 0 s"
    assert not detector.describe() and not detector.count("fake")
    detector.check()
    await soon(detector.wait_responds())


async def test_work_that_is_cancelled_is_not_logged_as_ended(caplog: pytest.LogCaptureFixture) -> None:
    """At the end of a drain the wait for the thread ends, but not its work."""
    detector = HangDetector(SHORT, lambda _: None)

    async def wait() -> None:
        with detector.watch(DeviceWork("m", FULL, 1, 0.0)):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    async with asyncio.timeout(20):
        while not detector.hangs:
            await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not detector.hangs
    assert "no longer hanging" not in caplog.text
