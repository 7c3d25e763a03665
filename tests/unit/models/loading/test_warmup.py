"""What a machine that was busy at the start says of plans is not believed for ever."""

from dataclasses import replace

from foveate.core.plan import Plan
from foveate.models.loading import warmup
from foveate.models.loading.warmup import slow_outliers, warm_up
from foveate.models.runners.image import TorchRunner
from tests.support.dense_heads import dense_checkpoint

FULL = Plan("m", 224)
HALF, TENTH = replace(FULL, reducer="evit:0.5"), replace(FULL, reducer="evit:0.1")
COST = {FULL: 1.0, HALF: 0.5, TENTH: 0.1}


def test_what_took_longer_than_it_can_have_was_slow_outliers() -> None:
    quiet = {FULL: {1: 0.020}, HALF: {1: 0.012}, TENTH: {1: 0.006}}
    assert slow_outliers(quiet, 1, COST) == []
    assert slow_outliers(quiet, 8, COST) == [], "nothing was timed"
    assert slow_outliers(quiet | {FULL: {1: 0.9}}, 1, COST) == [FULL]
    assert slow_outliers(quiet | {TENTH: {1: 0.1}}, 1, COST) == [TENTH]
    assert slow_outliers({FULL: {1: 2.0}, HALF: {1: 1.0}, TENTH: {1: 0.006}}, 1, COST) == [FULL, HALF]
    assert slow_outliers({FULL: {1: 2.0}}, 1, COST) == [], "there is nothing to compare it with"


def test_it_is_timed_again(monkeypatch: object, one_thread: None) -> None:
    runner = TorchRunner(dense_checkpoint())
    true, held = warmup._steady_seconds, [3]

    def later_run(*given: object) -> float:
        """The first few batches of full are held up."""
        taken = true(*given)  # type: ignore[arg-type]
        if given[2] == runner.full and held[0]:
            held[0] -= 1
            return 100.0
        return taken

    monkeypatch.setattr(warmup, "_steady_seconds", later_run)  # type: ignore[attr-defined]
    warm_up(runner, (1,))
    assert not held[0]
    assert max(runner.times[1][runner.full].values()) < 50
