"""Measure the quality and latency of a model's plans, and write its profile.

Quality is measured on every image. Latency is measured in rounds. A round times every plan once, in a random
order, so that noise on the machine affects all plans alike. A plan is not timed if another one has its
quality for over a quarter less GFLOPs. The results are written after every step.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import (
    Measurement,
    MeasurementEnvironment,
    Profile,
    ProfilingSet,
    mark_rungs,
    worth_timing,
)
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.loading.machine import current_setting
from foveate.models.profiling.content_profile import learning_steps, with_content
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.evaluation import Evaluator, MeanIoU, NeighbourAgreement, Top1, read_masks
from foveate.models.profiling.profile_state import (
    ProfilingJob,
    ProfilingState,
    job_identity,
    partial_path,
    read_state,
    write_atomically,
    write_state,
)
from foveate.models.profiling.searching import STEPS, find_schedule, use_schedules
from foveate.models.profiling.timing import mean_batch_seconds
from foveate.models.runners.base import ModelRunner, Pixels
from foveate.models.runners.classifier import ClassifierRunner
from foveate.models.runners.image import TorchRunner

MIN_ROUND_IMAGES = 16
"""Fewest images in a round: the latency of a plan with exits depends on what the images show."""


class ReportStage(Protocol):
    """Called with the stage, a description of the step, how much of the stage is done, and the total."""

    def __call__(self, stage: str, step: str, done: int, total: int, /) -> None: ...


def measure(
    model: UnprofiledModel[ModelRunner],
    images: DecodedDataset,
    job: ProfilingJob,
    target: Path,
    report: ReportStage,
) -> Profile:
    """Measure a model and write its profile to `target`. TARGET.partial holds the results meanwhile.

    Raises SetupError if a file cannot be written, or if all answers of full are wrong.
    """
    if target.is_dir():
        raise SetupError(f"cannot write {target}: it is a folder")
    runner = model.runner
    setting = current_setting(runner.device.type, runner.full.precision)
    unfinished = partial_path(target)
    state = read_state(unfinished, job_identity(model, images, job, setting))
    write_state(unfinished, state)  # a file that cannot be written should fail now, not in an hour
    for stage in (_schedules, _qualities, _latencies):
        for next_state in stage(runner, images, job, state, report):
            state = next_state
            write_state(unfinished, state)
    profile = _profile(model, images, job, state, setting)
    if runner.card.task == "classify" and isinstance(runner, ClassifierRunner):
        report_content = partial(report, "content")
        # A server decodes all images to the size of the ladder's largest plan.
        runner.decoded_side = max(Plan.parse(m.plan, runner.full).image_size for m in profile.ladder)
        images = _decoded_at(runner.decoded_side, runner, images)
        for learned in learning_steps(
            runner, images, profile, job.batch_sizes, job.rounds, state.learnt, report_content
        ):
            state = replace(state, learnt=learned)
            write_state(unfinished, state)
        profile = with_content(profile, state.learnt)
    write_atomically(target, profile.text())
    unfinished.unlink(missing_ok=True)
    return profile


def _profile(
    model: UnprofiledModel[ModelRunner],
    images: DecodedDataset,
    job: ProfilingJob,
    state: ProfilingState,
    setting: MeasurementEnvironment,
) -> Profile:
    """The profile without the choice by content."""
    return Profile(
        model=model.runner.card.name,
        weights=model.weights,
        data=ProfilingSet(images.dataset.name, len(images), images.dataset.targets is not None),
        seed=job.seed,
        setting=setting,
        measurements=_measurements(state),
        siblings=dict(model.siblings),
        schedules=state.schedules,
    )


def _schedules(
    runner: ModelRunner, images: DecodedDataset, job: ProfilingJob, state: ProfilingState, report: ReportStage
) -> Iterator[ProfilingState]:
    """The state after each DiffRate schedule that is left to search. The runner uses them afterwards."""
    if not isinstance(runner, TorchRunner):
        return
    for number in range(len(state.schedules), len(job.shares)):

        def report_step(step: int, before: int = number * STEPS) -> None:
            report("schedules", "searching DiffRate schedules", before + step, len(job.shares) * STEPS)

        share = job.shares[number]
        schedule = find_schedule(runner, images, share, job.seed, report_step)
        state = replace(state, schedules={**state.schedules, f"{share:g}": schedule})
        yield state
    if job.shares:
        use_schedules(runner, state.schedules)


def _qualities(
    runner: ModelRunner, images: DecodedDataset, job: ProfilingJob, state: ProfilingState, report: ReportStage
) -> Iterator[ProfilingState]:
    """The state after the quality of each plan that is left to measure."""
    evaluator = evaluator_for(runner, images, state.kept, state.named)
    total = len(job.plans) * len(images)
    for number in range(len(state.kept), len(job.plans)):
        plan, succeeded = job.plans[number], list[Result]()
        name, done = plan.relative_to(runner.full), 0
        for chunk in _decoded_at(plan.image_size, runner, images).chunks(runner.max_batch):
            report("quality", f"quality of {name}", number * len(images) + done, total)
            results = runner.run(runner.stack(chunk, plan), plan)
            evaluator.update(results)
            succeeded += [_costs_only(r) for r in results if isinstance(r, Result)]
            done += len(results)
        state = _with_quality(state, name, succeeded, evaluator)
        yield state
    report("quality", f"quality of {len(job.plans)} plans", len(job.plans), len(job.plans))


def _costs_only(result: Result) -> Result:
    """The result without its maps and features, which would fill the memory."""
    return replace(result, maps=None, frame_maps=(), over_time=None, features=None)


def _latencies(
    runner: ModelRunner, images: DecodedDataset, job: ProfilingJob, state: ProfilingState, report: ReportStage
) -> Iterator[ProfilingState]:
    """The state after each round of timing that is left to do."""
    plans = {plan.relative_to(runner.full): plan for plan in job.plans}
    timed = [plans[m.plan] for m in worth_timing(state.kept)]
    description, per_round = f"latency of {len(timed)} plans", len(timed) * len(job.batch_sizes)
    for number in range(len(state.rounds), job.rounds):
        times: dict[str, dict[int, float]] = {plan.relative_to(runner.full): {} for plan in timed}
        pixels = {
            side: _round_images(_decoded_at(side, runner, images), job, number)
            for side in {plan.image_size for plan in timed}
        }
        for done, (plan, size) in enumerate(_timing_order(timed, job, number)):
            report("latency", description, number * per_round + done, job.rounds * per_round)
            times[plan.relative_to(runner.full)][size] = mean_batch_seconds(
                runner, plan, pixels[plan.image_size], size
            )
        state = replace(state, rounds=(*state.rounds, times))
        yield state
    report("latency", description, job.rounds * per_round, job.rounds * per_round)


def _decoded_at(side: int, runner: ModelRunner, images: DecodedDataset) -> DecodedDataset:
    """The images as the server decodes them for a plan of this image size: never smaller than for full."""
    return images if side <= runner.full.image_size else images.sized(side)


def evaluator_for(
    runner: ModelRunner,
    images: DecodedDataset,
    measured: Sequence[Measurement] = (),
    full_classes: Sequence[int] = (),
) -> Evaluator:
    """The evaluator for the runner's task.

    measured: the plans that are measured already, full first; full_classes: the classes that full
    predicted, if they are known.
    """
    dataset = images.dataset
    if runner.card.task == "classify":
        return Top1(dataset.targets, full_classes)
    if runner.card.task == "embed":
        return _after_full(NeighbourAgreement(), runner, images, bool(measured))
    side, classes, frames = runner.full.image_size, len(runner.card.labels) + 1, runner.card.frames
    if dataset.masks is not None:
        masks = (read_masks(dataset.encoded_mask(index), side, frames or 1) for index in range(len(images)))
        truth = [mask for item in masks for mask in item]
        return MeanIoU(truth, classes, measured[0].accuracy if measured else None, frames)
    return _after_full(MeanIoU(None, classes, frames=frames), runner, images, bool(measured))


def _after_full(
    evaluator: Evaluator, runner: ModelRunner, images: DecodedDataset, is_measured: bool
) -> Evaluator:
    """An evaluator that compares with the answers of full. If full is measured already, it runs again.

    The partial file does not hold its masks or embeddings.
    """
    if is_measured:
        for chunk in images.chunks(runner.max_batch):
            evaluator.update(runner.run(runner.stack(chunk, runner.full), runner.full))
        evaluator.result()
    return evaluator


def _with_quality(
    state: ProfilingState, plan: str, succeeded: Sequence[Result], evaluator: Evaluator
) -> ProfilingState:
    """The state with one more plan's quality. The first plan is full, to which the others are compared."""
    if not succeeded:
        raise SetupError(f"{plan} gives no finite answer to any image")
    quality, accuracy = evaluator.result()
    measurement = Measurement(
        plan=plan,
        quality=round(quality, 6),
        accuracy=None if accuracy is None else round(accuracy, 6),
        gflops=round(statistics.fmean(result.gflops for result in succeeded), 6),
        tokens=round(statistics.fmean(result.tokens for result in succeeded)),
        latency_s={},
    )
    full_classes = evaluator.full if isinstance(evaluator, Top1) else ()
    return replace(state, named=full_classes, kept=(*state.kept, measurement))


def _round_images(images: DecodedDataset, job: ProfilingJob, number: int) -> list[Pixels]:
    """The images of one round, the same for every plan: the next ones of a seeded order, which repeats."""
    count = max(MIN_ROUND_IMAGES, *job.batch_sizes)
    order = np.random.default_rng(job.seed).permutation(len(images))
    return images.at(order.take(range(number * count, (number + 1) * count), mode="wrap").tolist())


def _timing_order(plans: Sequence[Plan], job: ProfilingJob, number: int) -> Iterator[tuple[Plan, int]]:
    """Every plan with every batch size, in the seeded order of this round."""
    random = np.random.default_rng((job.seed, number))
    for size in job.batch_sizes:
        for index in random.permutation(len(plans)).tolist():
            yield plans[index], size


def _measurements(state: ProfilingState) -> tuple[Measurement, ...]:
    """Every plan with its median latencies if it was timed, rungs marked, cheapest first."""

    def latency(plan: str) -> dict[int, float]:
        rounds = [times[plan] for times in state.rounds if plan in times]
        sizes = rounds[0] if rounds else ()
        return {size: round(statistics.median(times[size] for times in rounds), 9) for size in sizes}

    measured = [replace(m, latency_s=latency(m.plan)) for m in state.kept]
    return mark_rungs(sorted(measured, key=lambda m: m.gflops))
