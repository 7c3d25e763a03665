"""Measure the quality and latency of a model's plans, and write its profile.

Many plans are first screened on few images (`screening`). Quality is then measured on every image. Latency is
measured in rounds. A round times every plan once, in a random order, so that noise on the machine affects all
plans alike. A plan is not timed if another one has its quality for over a quarter less GFLOPs. The results
are written after every step. A budget bounds the time of all of this.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import (
    Measurement,
    MeasurementEnvironment,
    PlanSearch,
    Profile,
    ProfilingSet,
    mark_rungs,
    worth_timing,
)
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.loading.machine import current_setting
from foveate.models.profiling.budget import TimeBudget
from foveate.models.profiling.content_profile import with_content
from foveate.models.profiling.content_stage import CONTENT, content_steps
from foveate.models.profiling.dataset import DecodedDataset, decoded_at
from foveate.models.profiling.evaluation import Evaluator, Top1, evaluator_for
from foveate.models.profiling.profile_state import (
    ProfilingJob,
    ProfilingState,
    ReportStage,
    job_identity,
    partial_path,
    read_state,
    write_atomically,
    write_state,
)
from foveate.models.profiling.screening import (
    LATENCY_SHARE,
    MIN_ROUND_IMAGES,
    QUALITY_SHARE,
    drop_for_time,
    families,
    screening_steps,
    timed_within,
    to_measure,
)
from foveate.models.profiling.searching import STEPS, find_schedule, use_schedules
from foveate.models.profiling.timing import mean_batch_seconds
from foveate.models.runners.base import ModelRunner, Pixels
from foveate.models.runners.image import TorchRunner


def measure(
    model: UnprofiledModel[ModelRunner],
    images: DecodedDataset,
    job: ProfilingJob,
    target: Path,
    report: ReportStage,
) -> Profile:
    """Measure a model and write its profile to `target`. TARGET.partial holds the results meanwhile.

    TARGET.partial stays if the budget ended too early, so that the same job goes on from there with another
    budget. Raises SetupError if a file cannot be written, or if all answers of full are wrong.
    """
    if target.is_dir():
        raise SetupError(f"cannot write {target}: it is a folder")
    runner = model.runner
    setting = current_setting(runner.device.type, runner.full.precision)
    unfinished = partial_path(target)
    state = read_state(unfinished, job_identity(model, images, job, setting)).for_budget(job.budget_s)
    budget = TimeBudget(job.budget_s, state.spent_s)

    def save(next_state: ProfilingState) -> ProfilingState:
        if budget.seconds is not None:
            spent, seconds = round(min(budget.spent_s, budget.seconds)), round(budget.seconds)
            report("budget", f"budget of {seconds} s", spent, seconds)
        next_state = replace(next_state, spent_s=budget.spent_s)
        write_state(unfinished, next_state)
        return next_state

    save(state)  # a file that cannot be written should fail now, not in an hour
    for stage in (_schedules, screening_steps, _qualities, _latencies):
        for next_state in stage(runner, images, job, state, report, budget):
            state = save(next_state)
    profile = _profile(model, images, job, state, setting)
    for next_state in content_steps(runner, images, job, state, report, budget, profile):
        state = save(next_state)
    if not any(drop.plan == CONTENT for drop in state.dropped):
        profile = with_content(profile, state.learnt)
    within = not (budget.ended() or any(drop.by_budget for drop in state.dropped))
    dropped = families(state.dropped, runner.full.variant)
    dropped_plans = len({drop.plan for drop in state.dropped} - {CONTENT})
    search = PlanSearch(len(job.plans), dropped_plans, job.budget_s, within, dropped)
    profile = replace(profile, search=search)
    write_atomically(target, profile.text())
    if within:
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
    runner: ModelRunner,
    images: DecodedDataset,
    job: ProfilingJob,
    state: ProfilingState,
    report: ReportStage,
    budget: TimeBudget,
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
    runner: ModelRunner,
    images: DecodedDataset,
    job: ProfilingJob,
    state: ProfilingState,
    report: ReportStage,
    budget: TimeBudget,
) -> Iterator[ProfilingState]:
    """The state after the quality of each plan that is left to measure; of full in any case."""
    evaluator = evaluator_for(runner, images, state.kept, state.named)
    plans = to_measure(job.plans, runner.full, state)
    total, measured = len(plans) * len(images), {m.plan for m in state.kept}
    for number, plan in enumerate(plans):
        name, done, succeeded = plan.relative_to(runner.full), 0, list[Result]()
        if name in measured:
            continue
        if plan != runner.full and budget.ended(QUALITY_SHARE):
            rest = [plan.relative_to(runner.full) for plan in plans[number:]]
            yield drop_for_time(state, "quality on all images", [n for n in rest if n not in measured])
            break
        for chunk in decoded_at(plan.image_size, runner.full.image_size, images).chunks(runner.max_batch):
            report("quality", f"quality of {name}", number * len(images) + done, total)
            results = runner.run(runner.stack(chunk, plan), plan)
            evaluator.update(results)
            succeeded += [_costs_only(r) for r in results if isinstance(r, Result)]
            done += len(results)
        state = _with_quality(state, name, succeeded, evaluator)
        yield state
    report("quality", f"quality of {len(state.kept)} plans", len(plans), len(plans))


def _costs_only(result: Result) -> Result:
    """The result without its maps and features, which would fill the memory."""
    return replace(result, maps=None, frame_maps=(), over_time=None, features=None)


def _latencies(
    runner: ModelRunner,
    images: DecodedDataset,
    job: ProfilingJob,
    state: ProfilingState,
    report: ReportStage,
    budget: TimeBudget,
) -> Iterator[ProfilingState]:
    """The state after each round of timing that is left to do."""
    plans = {plan.relative_to(runner.full): plan for plan in job.plans}
    offered = [m.plan for m in worth_timing(state.kept)]
    dropped = {drop.plan for drop in state.dropped}
    names = [name for name in offered if name not in dropped]
    if not state.rounds:
        names = names[: timed_within(names, job, state, budget)]
        untimed = [name for name in offered if name not in names and name not in dropped]
        if untimed:
            yield (state := drop_for_time(state, "latency", untimed))
    if any(times.keys() != set(names) for times in state.rounds):
        state = replace(state, rounds=())  # of another budget, which left time for other plans
    timed = [plans[name] for name in names]
    if len(timed) < 2 and len(offered) > 1:
        return  # without latencies, the rungs are those by GFLOPs
    description, per_round = f"latency of {len(timed)} plans", len(timed) * len(job.batch_sizes)
    for number in range(len(state.rounds), job.rounds):
        if number and budget.ended(LATENCY_SHARE):
            break
        times: dict[str, dict[int, float]] = {plan.relative_to(runner.full): {} for plan in timed}
        pixels = {
            side: _round_images(decoded_at(side, runner.full.image_size, images), job, number)
            for side in {plan.image_size for plan in timed}
        }
        for done, (plan, size) in enumerate(timing_order(timed, job, number)):
            report("latency", description, number * per_round + done, job.rounds * per_round)
            times[plan.relative_to(runner.full)][size] = mean_batch_seconds(
                runner, plan, pixels[plan.image_size], size
            )
        state = replace(state, rounds=(*state.rounds, times))
        yield state
    report("latency", description, job.rounds * per_round, job.rounds * per_round)


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


def timing_order(plans: Sequence[Plan], job: ProfilingJob, number: int) -> Iterator[tuple[Plan, int]]:
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
