"""A fake runner with a warm-up of a few steps."""

from collections.abc import Sequence

from foveate.core.batching import WarmedPlan
from foveate.core.plan import Plan
from tests.support.fake_runner import FULL, HALF, FakeRunner

WARM_FULL = WarmedPlan(FULL, 4, {1: {1: 2e-4, 4: 3e-4}})
WARM_HALF = WarmedPlan(HALF, 4, {1: {1: 1e-4, 4: 2e-4}})


class StepWarmup:
    """A `Warmup` in which full is warm and HALF becomes warm with the last step."""

    def __init__(self, steps: int) -> None:
        self.total = steps
        self.steps_run = 0

    @property
    def warm(self) -> Sequence[WarmedPlan]:
        return [WARM_FULL, WARM_HALF] if self.next is None else [WARM_FULL]

    @property
    def next(self) -> tuple[Plan, int] | None:
        return (HALF, 1) if self.steps_run < self.total else None

    @property
    def ratio(self) -> float:
        return self.steps_run / self.total

    def run_next(self) -> WarmedPlan | None:
        self.steps_run += 1
        return WARM_HALF if self.steps_run == self.total else None

    def skip(self, plan: Plan) -> None:
        assert plan == HALF
        self.steps_run = self.total


class WarmingRunner(FakeRunner):
    """A fake runner whose ladder is not warm yet."""

    def __init__(self, steps: int = 3, name: str = "fake") -> None:
        super().__init__(name)
        self.times = {1: {plan: dict(warm.times[1]) for plan, warm in ((FULL, WARM_FULL), (HALF, WARM_HALF))}}
        self.warmup = StepWarmup(steps)

    def use(self, threads: int) -> None:
        assert threads == 1
