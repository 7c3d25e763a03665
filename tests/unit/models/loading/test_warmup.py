"""Warm-up: times that other work on the machine distorted are measured again."""

from dataclasses import replace

import pytest

from foveate.core.plan import Plan
from foveate.models.loading import warmup
from foveate.models.loading.warmup import slow_outliers, warm_up
from foveate.models.runners.image import TorchRunner
from tests.support.dense_heads import dense_checkpoint

FULL = Plan("m", 224)
HALF, TENTH = replace(FULL, reducer="evit:0.5"), replace(FULL, reducer="evit:0.1")
COST = {FULL: 1.0, HALF: 0.5, TENTH: 0.1}


def test_a_time_far_above_those_of_other_plans_is_an_outlier() -> None:
    times = {FULL: {1: 0.020}, HALF: {1: 0.012}, TENTH: {1: 0.006}}
    assert slow_outliers(times, 1, COST) == []
    assert slow_outliers(times, 8, COST) == [], "no batch of this size was timed"
    assert slow_outliers(times | {FULL: {1: 0.9}}, 1, COST) == [FULL]
    assert slow_outliers(times | {TENTH: {1: 0.1}}, 1, COST) == [TENTH]
    assert slow_outliers({FULL: {1: 2.0}, HALF: {1: 1.0}, TENTH: {1: 0.006}}, 1, COST) == [FULL, HALF]
    assert slow_outliers({FULL: {1: 2.0}}, 1, COST) == [], "there is no other plan to compare with"


def test_an_outlier_is_timed_again(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    runner = TorchRunner(dense_checkpoint())
    real, slow_runs = warmup._steady_seconds, [3]

    def seconds(*arguments: object) -> float:
        """Real seconds, but 100 for the first batches of full."""
        taken = real(*arguments)  # type: ignore[arg-type]
        if arguments[2] == runner.full and slow_runs[0]:
            slow_runs[0] -= 1
            return 100.0
        return taken

    monkeypatch.setattr(warmup, "_steady_seconds", seconds)
    warm_up(runner, (1,))
    assert not slow_runs[0]
    assert max(runner.times[1][runner.full].values()) < 50
