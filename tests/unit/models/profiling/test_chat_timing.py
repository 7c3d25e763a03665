"""The time of the stages of a vision-language model."""

from pathlib import Path

import pytest

from foveate.core.plan import Plan
from foveate.models.profiling.chat_timing import TimingRound
from foveate.models.profiling.profile_state import ProfilingJob
from tests.support.question_sets import chat_model, unanswered

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_stages_are_timed_and_plans_that_encode_alike_share_the_time(tmp_path: Path) -> None:
    runner = chat_model(tmp_path).runner
    data = unanswered(tmp_path / "data")
    plans = {text: Plan.parse(text, runner.full) for text in ("full", "guided:4", "resolution:4")}
    job = ProfilingJob(tuple(plans.values()), (1, 3))
    timing = TimingRound(runner, data, job, number=1)
    times = {(text, size): timing.seconds(plan, size) for text, plan in plans.items() for size in (1, 3)}
    assert all(seconds > 0 for stages in times.values() for seconds in stages)
    assert times["full", 3][0] == times["guided:4", 3][0] != times["resolution:4", 3][0]
    assert times["full", 1][0] != times["full", 3][0]
    assert runner.cache.free_slots == runner.cache.shape.slots
