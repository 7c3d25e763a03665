"""Warm-up: what runs before the first request and what later, and which times are measured again."""

from dataclasses import replace
from typing import Any

import pytest

from foveate.core.plan import Plan
from foveate.models.loading.measured_times import BatchTimes
from foveate.models.loading.warmup import LadderWarmup, slow_outliers
from foveate.models.runners.image import TorchRunner
from tests.support.measuring import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = Plan("m", 224)
HALF, TENTH = replace(FULL, reducer="evit:0.5"), replace(FULL, reducer="evit:0.1")
COST = {FULL: 1.0, HALF: 0.5, TENTH: 0.1}


class RecordingRunner(TorchRunner):
    """Keeps the plan and the size of every batch that it runs."""

    def __init__(self) -> None:
        super().__init__(tiny(), max_batch=8)
        self.ran: list[tuple[Plan, int]] = []

    def run(self, batch: Any, plan: Plan) -> Any:
        self.ran.append((plan, len(batch)))
        return super().run(batch, plan)


def test_a_time_far_above_those_of_other_plans_is_an_outlier() -> None:
    times = {FULL: {1: 0.020}, HALF: {1: 0.012}, TENTH: {1: 0.006}}
    assert slow_outliers(times, 1, COST) == []
    assert slow_outliers(times, 8, COST) == [], "no batch of this size was timed"
    assert slow_outliers(times | {FULL: {1: 0.9}}, 1, COST) == [FULL]
    assert slow_outliers(times | {TENTH: {1: 0.1}}, 1, COST) == [TENTH]
    assert slow_outliers({FULL: {1: 2.0}, HALF: {1: 1.0}, TENTH: {1: 0.006}}, 1, COST) == [FULL, HALF]
    assert slow_outliers({FULL: {1: 2.0}}, 1, COST) == [], "there is no other plan to compare with"


def test_full_and_the_cheapest_rung_run_before_the_first_request_and_no_other_rung() -> None:
    runner = RecordingRunner()
    warmup = LadderWarmup(runner, (1,))
    warmup.run_essential()
    cheapest = runner.card.ladder[0].plan
    assert set(runner.ran) == {(plan, size) for plan in (runner.full, cheapest) for size in (1, 8)}
    assert {warmed.plan: warmed.size for warmed in warmup.warm} == {runner.full: 8, cheapest: 8}
    assert all(set(warmed.times) == {1} and set(warmed.times[1]) == {1, 8} for warmed in warmup.warm)
    assert 0 < warmup.ratio < 1


def test_idle_time_warms_the_cheapest_rung_at_all_sizes_and_then_the_others_cheapest_first() -> None:
    runner = RecordingRunner()
    warmup = LadderWarmup(runner, (1,))
    warmup.run_essential()
    runner.ran.clear()
    order = [warmed.plan for _ in range(100) if (warmed := warmup.run_next()) is not None]
    cheapest, *others, full = (rung.plan for rung in runner.card.ladder)
    assert {size for plan, size in runner.ran if plan == cheapest} >= {2, 3, 4, 6}
    assert list(dict.fromkeys(order)) == [cheapest, *others]
    assert warmup.next is None
    assert warmup.ratio == 1
    assert full in {warmed.plan for warmed in warmup.warm}
    assert set(warmup.times[1]) == {cheapest, *others, full}
    assert all(set(by_size) == {1, 8} for by_size in warmup.times[1].values())


def test_a_plan_is_skipped_and_the_others_still_run() -> None:
    runner = RecordingRunner()
    warmup = LadderWarmup(runner, (1,))
    warmup.run_essential()
    cheapest, other, *_ = (rung.plan for rung in runner.card.ladder)
    runner.ran.clear()
    warmup.skip(cheapest)
    warmup.skip(other)
    warmup.run_all()
    assert not {cheapest, other} & {plan for plan, _ in runner.ran}
    assert {rung.plan for rung in runner.card.ladder} - {warmed.plan for warmed in warmup.warm} == {other}
    assert warmup.next is None and warmup.ratio == 1


def test_remembered_times_are_not_measured_again() -> None:
    first, saved = RecordingRunner(), list[BatchTimes]()
    LadderWarmup(first, (1,), save=saved.append).run_all()
    assert saved
    second = RecordingRunner()
    again = LadderWarmup(second, (1,), saved[-1], save=lambda _: pytest.fail("nothing was measured"))
    again.run_all()
    assert again.times == saved[-1]
    assert len(second.ran) < len(first.ran) / 2


def test_times_of_each_plan_are_stored_once_it_is_warm() -> None:
    saved = list[set[Plan]]()

    def save(times: BatchTimes) -> None:
        saved.append({plan for plan, by_size in times[1].items() if by_size})

    warmup = LadderWarmup(RecordingRunner(), (1,), save=save)
    warmup.run_essential()
    cheapest, other, *_, full = (rung.plan for rung in warmup.runner.card.ladder)
    assert saved == [{cheapest, full}]
    warmed = None
    while warmed is None or warmed.plan != other:
        warmed = warmup.run_next()
    assert saved[-1] == {cheapest, other, full}


def test_an_outlier_is_timed_again() -> None:
    runner = RecordingRunner()
    warmup = LadderWarmup(runner, (1,))
    real, slow_runs = warmup._run, [2]

    def slowed(forward: Any) -> Any:
        """Real seconds, but 100 after the first timed batches of full."""
        warmed = real(forward)
        if forward.timed and forward.plan == runner.full and slow_runs[0]:
            slow_runs[0] -= 1
            warmup.times[1][runner.full][forward.size] = 100.0
        return warmed

    warmup._run = slowed  # type: ignore[method-assign]
    warmup.run_essential()
    assert not slow_runs[0]
    assert max(warmup.times[1][runner.full].values()) < 50
