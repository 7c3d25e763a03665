"""The choice of the rung by content, on a family of opaque networks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.opaque.checkpoint import OpaqueFamily
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.runners.classifier import classified
from tests.support.opaque_models import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def image(side: int, red: int, green: int, blue: int) -> np.ndarray[Any, Any]:
    return np.full((side, side, 3), (red, green, blue), np.uint8)


def test_content_chooses_the_member() -> None:
    """The small member has a low gain. It is certain of a clear colour alone, and greys go to full."""
    family = OpaqueFamily("both", (checkpoint("large"), checkpoint("small", gain=5.0)))
    runner = OpaqueRunner(family)
    assert not runner.content_plans
    runner.content = ContentRungs(("small@64", "full"), ((1.0, 0.0, 0.0),), (-2.0,))
    assert runner.content_plans == (Plan("small", 64), runner.full)
    plan = replace(runner.full, content="0.5")
    runner.check(plan)
    batch = [image(64, 255, 0, 0), image(64, 128, 120, 110), image(64, 0, 0, 255)]
    results = [r for r in runner.run(runner.stack(batch, plan), plan) if isinstance(r, Result)]
    assert [str(result.chosen) for result in results] == [
        "small@64/fp32", "large@64/fp32", "small@64/fp32",
    ]  # fmt: skip
    small, large = (runner.gflops(Plan(name, 64)) for name in ("small", "large"))
    assert [result.gflops for result in results] == pytest.approx([small, small + large, small])
    with pytest.raises(BadPlan, match="chooses among whole plans"):
        runner.check(Plan.parse("small@64/content:0.5", runner.full))


def test_batches_are_no_larger_than_a_forward_takes() -> None:
    class Narrow(OpaqueRunner):
        sizes: list[int]

        def batch_limit(self, plan: Plan) -> int:
            return 3

        def run_plan(self, batch: Any, plan: Plan) -> Any:
            self.sizes.append(len(batch))
            return super().run_plan(batch, plan)

    runner = Narrow(checkpoint())
    runner.sizes = []
    batch = runner.stack([image(64, shade, 0, 0) for shade in range(7)], runner.full)
    results = runner.run(batch, runner.full)
    assert len(results) == 7 and max(runner.sizes) <= 3 and sum(runner.sizes) == 7


def test_scores_that_are_not_finite_fail() -> None:
    assert isinstance(classified(np.array([0.5, np.nan], np.float32), 1, 1, 0.0), RunFailed)
    assert isinstance(classified(np.array([0.5, 0.5], np.float32), 1, 1, 0.0), Result)
