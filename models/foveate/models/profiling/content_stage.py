"""The last stage of profiling: learn and measure the choice by content, if there is time for it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.profiling.budget import TimeBudget
from foveate.models.profiling.content_profile import learning_steps
from foveate.models.profiling.dataset import DecodedDataset, decoded_at
from foveate.models.profiling.profile_state import ProfilingJob, ProfilingState, ReportStage
from foveate.models.profiling.screening import content_seconds, drop_for_time
from foveate.models.runners.base import ModelRunner
from foveate.models.runners.classifier import ClassifierRunner

CONTENT = "content"
"""What stands for all plans with a choice by content among those that were dropped."""


def content_steps(
    runner: ModelRunner,
    images: DecodedDataset,
    job: ProfilingJob,
    state: ProfilingState,
    report: ReportStage,
    budget: TimeBudget,
    profile: Profile,
) -> Iterator[ProfilingState]:
    """The state after each step of the choice by content among the rungs of a profile, for classifiers."""
    if runner.card.task != "classify" or not isinstance(runner, ClassifierRunner):
        return
    if budget.left_s() < content_seconds(state, len(images)):
        yield drop_for_time(state, "choice by content", [CONTENT])
        return
    # A server decodes all images to the size of the ladder's largest plan.
    runner.decoded_side = max(Plan.parse(m.plan, runner.full).image_size for m in profile.ladder)
    images = decoded_at(runner.decoded_side, runner.full.image_size, images)
    for learned in learning_steps(
        runner, images, profile, job.batch_sizes, job.rounds, state.learnt, partial(report, "content")
    ):
        yield replace(state, learnt=learned)
        if budget.ended():
            return
