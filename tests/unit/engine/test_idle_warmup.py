"""Warm-up in idle time: after requests, in turns, and rungs are used once they are warm."""

import asyncio
import logging
import threading
import time

import pytest
from prometheus_client import generate_latest

from foveate.core.batching import WarmedPlan
from foveate.core.errors import RunFailed
from foveate.core.metrics import Metrics
from foveate.core.plan import Plan
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.hang import HangLimits
from foveate.estimation.host_load import HostLoadMonitor
from tests.support.engines import blocked, make_request, running, soon
from tests.support.fake_runner import FULL, HALF
from tests.support.warming_runner import WARM_FULL, WARM_HALF, StepWarmup, WarmingRunner

pytestmark = pytest.mark.anyio


async def warm(*runners: WarmingRunner) -> None:
    """Return once all steps of these runners have run."""
    while any(runner.warmup.next is not None for runner in runners):
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.01)


async def test_an_idle_engine_warms_up_and_then_uses_the_rung() -> None:
    runner = WarmingRunner()
    engine = Engine(runner, Metrics())
    assert not engine.latency.is_warm(HALF)
    assert engine.latency.is_warm(FULL)
    engine.start()
    await soon(warm(runner))
    assert engine.latency.is_warm(HALF)
    await engine.close()


async def test_no_step_runs_while_a_request_runs_or_is_decoded() -> None:
    runner, host_load = WarmingRunner(), HostLoadMonitor()
    with host_load.timer("images", "fake"):
        async with running(runner, host_load=host_load):
            await asyncio.sleep(0.1)
            assert runner.warmup.steps_run == 0, "an image is being decoded"
    runner = WarmingRunner()
    async with running(runner) as engine:
        first = await blocked(engine, runner)
        before = runner.warmup.steps_run
        await asyncio.sleep(0.1)
        assert runner.warmup.steps_run == before, "a forward runs"
        runner.gate.set()
        await soon(first)
        await soon(warm(runner))


async def test_a_long_step_waits_until_no_request_has_arrived_for_a_second() -> None:
    runner = WarmingRunner()
    runner.times[1][HALF] = {1: 0.5, 4: 0.6}
    device = DeviceExecutor()
    async with running(runner, device=device) as engine:
        device.last_batch_at = device.clock()
        await asyncio.sleep(0.2)
        assert runner.warmup.steps_run == 0
        device.last_batch_at -= 10
        await soon(warm(runner))
        assert engine.latency.is_warm(HALF)


class GatedWarmup(StepWarmup):
    """A warm-up whose step waits for the gate."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun, self.gate = threading.Event(), threading.Event()

    def run_next(self) -> WarmedPlan | None:
        self.begun.set()
        assert self.gate.wait(20)
        return super().run_next()


async def test_a_step_that_runs_holds_the_device_and_is_watched_after_a_drain_has_begun() -> None:
    device, runner = DeviceExecutor(hang_limits=HangLimits(0.05, 1000)), WarmingRunner()
    warmup = runner.warmup = GatedWarmup()
    async with running(runner, device=device) as engine:
        await soon(asyncio.to_thread(warmup.begun.wait, 20))
        await soon(engine.drain())
        await asyncio.sleep(0.1)
        assert not device.idle
        assert "a warm-up of 1 for fake" in device.hangs.describe(hanging_only=True)
        warmup.gate.set()
        await soon(device.hangs.wait_responds())
        await asyncio.sleep(0.05)
        assert device.idle and warmup.next is None


async def test_models_take_turns() -> None:
    device, metrics = DeviceExecutor(), Metrics()
    runners = WarmingRunner(20, "a"), WarmingRunner(20, "b")
    engines = [Engine(runner, metrics, device=device) for runner in runners]
    for engine in engines:
        engine.start()
    while max(runner.warmup.steps_run for runner in runners) < 10:
        await asyncio.sleep(0)
    assert min(runner.warmup.steps_run for runner in runners) >= 8
    await soon(warm(*runners))
    for engine in engines:
        await engine.close()


async def test_the_metric_shows_how_much_is_warm() -> None:
    metrics, runner = Metrics(), WarmingRunner(4)
    engine = Engine(runner, metrics)
    assert b'foveate_warm_ratio{model="fake"} 0.0' in generate_latest(metrics.registry)
    engine.start()
    await soon(warm(runner))
    assert b'foveate_warm_ratio{model="fake"} 1.0' in generate_latest(metrics.registry)
    await engine.close()


async def test_a_runner_without_warm_up_counts_as_warm() -> None:
    metrics, runner = Metrics(), WarmingRunner()
    runner.warmup = None  # type: ignore[assignment]
    async with running(runner) as engine:
        assert engine.latency.is_warm(HALF)
    Engine(runner, metrics)
    assert b'foveate_warm_ratio{model="fake"} 1.0' in generate_latest(metrics.registry)


class TwoPlanWarmup:
    """Two batches of FULL and two of HALF are left. All of the failing plan raise the error."""

    warm = (WARM_FULL,)

    def __init__(self, failing: Plan, error: BaseException) -> None:
        self.failing, self.error = failing, error
        self.left = [(FULL, 4), (FULL, 8), (HALF, 1), (HALF, 4)]
        self.tried: list[Plan] = []

    @property
    def next(self) -> tuple[Plan, int] | None:
        return self.left[0] if self.left else None

    @property
    def ratio(self) -> float:
        return 1 - len(self.left) / 4

    def run_next(self) -> WarmedPlan | None:
        plan, size = self.left.pop(0)
        self.tried.append(plan)
        if plan == self.failing:
            raise self.error
        return {(FULL, 8): WARM_FULL, (HALF, 4): WARM_HALF}.get((plan, size))

    def skip(self, plan: Plan) -> None:
        self.left = [batch for batch in self.left if batch[0] != plan]


@pytest.mark.parametrize("error", [RunFailed("no memory"), SystemExit(1)])
@pytest.mark.parametrize("failing", [FULL, HALF])
async def test_a_plan_that_fails_is_skipped_with_one_warning_and_the_others_go_on(
    failing: Plan, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runner = WarmingRunner()
    warmup = TwoPlanWarmup(failing, error)
    runner.warmup = warmup  # type: ignore[assignment]
    async with running(runner) as engine:
        await soon(warm(runner))
        assert warmup.tried == ([FULL, HALF, HALF] if failing == FULL else [FULL, FULL, HALF])
        assert engine.latency.is_warm(HALF) == (failing == FULL)
        assert (await soon(engine.submit(make_request("a", deadline=None)))).plan == FULL
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"fake: the warm-up of {failing} failed; its other batches are left out"]
    assert "all rungs are warm" not in caplog.text


async def test_a_draining_engine_does_not_warm_up() -> None:
    runner = WarmingRunner(1000)
    async with running(runner) as engine:
        await soon(engine.drain())
        await asyncio.sleep(0.01)
        before = runner.warmup.steps_run
        await asyncio.sleep(0.1)
        assert runner.warmup.steps_run == before


class SlowWarmup(StepWarmup):
    """A step takes much longer than its forward is predicted to."""

    def run_next(self) -> WarmedPlan | None:
        time.sleep(0.3)
        return super().run_next()


async def test_after_a_step_that_took_long_the_next_one_waits_for_a_quiet_second() -> None:
    runner = WarmingRunner()
    runner.warmup = SlowWarmup(3)
    device = DeviceExecutor()
    device.last_batch_at = device.clock() - 0.5
    async with running(runner, device=device):
        while runner.warmup.steps_run == 0:
            device.last_batch_at = device.clock() - 0.5
            await asyncio.sleep(0.005)
        for _ in range(20):
            device.last_batch_at = device.clock() - 0.5
            await asyncio.sleep(0.02)
        assert runner.warmup.steps_run == 1, "requests have arrived within the last second"
