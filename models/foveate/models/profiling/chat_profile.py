"""Measure the quality and latency of the plans of a vision-language model, and write its profile.

The thresholds of merging inside the tower are calibrated first. Each plan then answers all questions, and is
timed in rounds, as `profile` does for other models. The results are written after every step.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.core.profile import (
    ChatMeasurement,
    DroppedFamily,
    Measurement,
    PlanSearch,
    Profile,
    ProfilingSet,
    mark_rungs,
)
from foveate.models import compression
from foveate.models.layers.visual_tokens import CompressionContext
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.loading.machine import current_setting
from foveate.models.profiling.budget import TimeBudget
from foveate.models.profiling.chat_profile_state import ChatProfilingState, chat_job_identity
from foveate.models.profiling.chat_quality import (
    ChatEvaluator,
    KindScores,
    turns_of,
)
from foveate.models.profiling.chat_timing import (
    STAGES,
    TimingRound,
)
from foveate.models.profiling.merge_calibration import calibrate
from foveate.models.profiling.profile import timing_order
from foveate.models.profiling.profile_state import (
    ProfilingJob,
    ReportStage,
    partial_path,
    read_partial,
    write_atomically,
    write_state,
)
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.profiling.screening import LATENCY_SHARE, QUALITY_SHARE
from foveate.models.vlm.describe import merge_blocks, merge_thresholds
from foveate.models.vlm.runner import ChatRunner

CALIBRATION_PICTURES, CALIBRATION_BATCH = 256, 16
"""Pictures on which thresholds are calibrated at most."""
MERGE, POOL = "merge:", "pool"
COUNT_ORDER = (49, 16, 100, 9, 25, 4)
"""Numbers of tokens in the order in which a budget measures them."""
SMALLER_COUNTS = (49, 25, 16, 9)
"""Numbers of pooled tokens at smaller sizes: fewer ones save next to nothing beside the tower."""


def chat_plans(runner: ChatRunner) -> tuple[Plan, ...]:
    """The plans to measure, full first: every method with each of its numbers of tokens.

    At the smaller sizes that the model was trained on: pooling, with SMALLER_COUNTS.
    """
    full = runner.full
    plans = [replace(full, reducer=text) for texts in _offered(runner, full).values() for text in texts]
    for size in runner.sizes[1:]:
        smaller = replace(full, image_size=size)
        pooled = {f"{POOL}:{count}" for count in SMALLER_COUNTS} & set(_offered(runner, smaller)[POOL])
        plans += [replace(smaller, reducer=text) for text in sorted(pooled)]
    order = {count: place for place, count in enumerate(COUNT_ORDER)}
    below = [plan for plan in plans if plan != full]
    return (full, *sorted(below, key=lambda plan: order.get(runner.method(plan).count, len(order))))


def _offered(runner: ChatRunner, plan: Plan) -> dict[str, tuple[str, ...]]:
    """What each method offers at the size of a plan."""
    patch_size = runner.parts.tower.patch_size
    side = plan.image_size // patch_size
    return compression.candidates(CompressionContext((side, side), patch_size))


def measure_chat(
    model: UnprofiledModel[ChatRunner],
    data: DecodedQuestions,
    job: ProfilingJob,
    target: Path,
    report: ReportStage,
) -> Profile:
    """Measure a model and write its profile to `target`. TARGET.partial holds the results meanwhile.

    TARGET.partial stays if the budget ended too early, so that the same job goes on from there with another
    budget. Raises SetupError if a file cannot be written, if full answers no question right, and for a
    question that is too long.
    """
    if target.is_dir():
        raise SetupError(f"cannot write {target}: it is a folder")
    runner, evaluator = model.runner, ChatEvaluator(model.runner, data)
    setting = current_setting(runner.device.type, runner.full.precision)
    unfinished = partial_path(target)
    empty = ChatProfilingState(chat_job_identity(model, data, job, setting))
    state = read_partial(unfinished, empty).for_budget(job.budget_s)
    budget = TimeBudget(job.budget_s, state.spent_s)
    write_state(unfinished, state)  # a file that cannot be written should fail now, not in an hour
    for stage in (_thresholds, _qualities, _latencies):
        for next_state in stage(runner, evaluator, job, state, report, budget):
            state = replace(next_state, spent_s=budget.spent_s)
            write_state(unfinished, state)
    profile = Profile(
        model=runner.card.name,
        weights=model.weights,
        data=ProfilingSet(data.name, len(data.images), data.answered),
        seed=job.seed,
        setting=setting,
        measurements=mark_rungs(sorted(_timed(state), key=lambda m: m.gflops)),
        search=_search(job, state),
        merging=state.merging,
    )
    write_atomically(target, profile.text())
    if not state.late:
        unfinished.unlink(missing_ok=True)
    return profile


def _thresholds(
    runner: ChatRunner,
    evaluator: ChatEvaluator,
    job: ProfilingJob,
    state: ChatProfilingState,
    report: ReportStage,
    budget: TimeBudget,
) -> Iterator[ChatProfilingState]:
    """The state after each calibration that is left to do. The runner merges with them afterwards."""
    trunk, full, data = runner.tower.trunk, runner.full, evaluator.data
    merging = [p for p in job.plans if p.reducer.startswith(MERGE) and p.image_size == full.image_size]
    counts = sorted({runner.method(plan).count for plan in merging} if trunk.config.prefix else ())
    numbers = np.random.default_rng(job.seed).permutation(len(data.images))[:CALIBRATION_PICTURES].tolist()
    batches = []
    for first in range(0, len(numbers) if set(counts) - state.merging.keys() else 0, CALIBRATION_BATCH):
        pixels = runner.stack(data.images.at(numbers[first : first + CALIBRATION_BATCH]), full)
        batches.append(runner.preprocess(pixels, full.image_size))
    for done, count in enumerate(counts):
        report("merging", f"calibrating merging to {count} tokens", done, len(counts))
        if count not in state.merging:
            blocks = merge_blocks(calibrate(trunk, batches, count))
            state = replace(state, merging={**state.merging, count: blocks})
            yield state
    if counts:
        report("merging", "calibrated merging", len(counts), len(counts))
    runner.use_thresholds(merge_thresholds(state.merging))


def _qualities(
    runner: ChatRunner,
    evaluator: ChatEvaluator,
    job: ProfilingJob,
    state: ChatProfilingState,
    report: ReportStage,
    budget: TimeBudget,
) -> Iterator[ChatProfilingState]:
    """The state after the quality of each plan that is left to measure; of full in any case."""
    data = evaluator.data
    total = len(job.plans) * len(data.asked)
    text_tokens = mean_text_tokens(runner, data)
    for number, plan in enumerate(job.plans):
        name, measured = plan.relative_to(runner.full), {m.plan for m in state.kept}
        if name in measured:
            continue
        if plan != runner.full and budget.ended(QUALITY_SHARE):
            late = tuple(p.relative_to(runner.full) for p in job.plans[number:])
            yield replace(state, late=tuple(n for n in late if n not in measured))
            break
        progress = partial(_report_questions, report, f"quality of {name}", number * len(data.asked), total)
        answers = evaluator.answers(plan, progress)
        full_answers = state.full_answers or tuple(answers)
        # Without right answers, full's are right.
        right = evaluator.exact_match if data.answered else partial(evaluator.agreement, others=full_answers)
        measurement = _measurement(
            runner, plan, right(answers), right(full_answers), text_tokens, data.answered
        )
        state = replace(state, full_answers=full_answers, kept=(*state.kept, measurement))
        yield state
    report("quality", f"quality of {len(state.kept)} plans", total, total)


def _report_questions(
    report: ReportStage, step: str, before: int, total: int, done: int, _of_plan: int
) -> None:
    report("quality", step, before + done, total)


def mean_text_tokens(runner: ChatRunner, data: DecodedQuestions) -> int:
    """Tokens of a prompt without the visual ones, the mean, rounded."""
    lengths = [len(runner.tokenizer.chat(turns_of(asked.question))) - 1 for _, asked in data.asked]
    return round(statistics.fmean(lengths))


def _measurement(
    runner: ChatRunner, plan: Plan, scores: KindScores, full: KindScores, text_tokens: int, answered: bool
) -> Measurement:
    """A plan's quality and GFLOPs, without latencies."""
    kept, cost = scores.kept(full), runner.cost(plan, text_tokens)
    worst = min(kept, key=lambda kind: kept[kind])
    return Measurement(
        plan=plan.relative_to(runner.full),
        quality=round(scores.quality(full), 6),
        accuracy=round(scores.mean, 6) if answered else None,
        gflops=round(cost.first_token, 6),
        tokens=runner.method(plan).count,
        latency_s={},
        chat=ChatMeasurement(
            by_kind={kind: round(share, 6) for kind, share in scores.by_kind.items()},
            worst_kind=worst,
            worst_quality=round(kept[worst], 6),
            encode_gflops=round(cost.encoder, 6),
            prefill_gflops=round(cost.projector + cost.prefill, 6),
            decode_gflops=round(cost.decode, 6),
        ),
    )


def _latencies(
    runner: ChatRunner,
    evaluator: ChatEvaluator,
    job: ProfilingJob,
    state: ChatProfilingState,
    report: ReportStage,
    budget: TimeBudget,
) -> Iterator[ChatProfilingState]:
    """The state after each round of timing that is left to do."""
    measured = {m.plan for m in state.kept}
    timed = [plan for plan in job.plans if plan.relative_to(runner.full) in measured]
    if any(times.keys() != measured for times in state.rounds):
        state = replace(state, rounds=())  # of another budget, which left time for other plans
    description, per_round = f"latency of {len(timed)} plans", len(timed) * len(job.batch_sizes)
    for number in range(len(state.rounds), job.rounds):
        if number and budget.ended(LATENCY_SHARE):
            break
        timing = TimingRound(runner, evaluator.data, job, number)
        times: dict[str, dict[str, dict[int, float]]] = {
            plan.relative_to(runner.full): {stage: {} for stage in STAGES} for plan in timed
        }
        for done, (plan, size) in enumerate(timing_order(timed, job, number)):
            report("latency", description, number * per_round + done, job.rounds * per_round)
            for stage, seconds in zip(STAGES, timing.seconds(plan, size), strict=True):
                times[plan.relative_to(runner.full)][stage][size] = seconds
        state = replace(state, rounds=(*state.rounds, times))
        yield state
    report("latency", description, job.rounds * per_round, job.rounds * per_round)


def _timed(state: ChatProfilingState) -> list[Measurement]:
    """Every plan with the medians of its latencies, if it was timed."""

    def median(plan: str, stage: str) -> dict[int, float]:
        rounds = [times[plan][stage] for times in state.rounds if plan in times]
        sizes = rounds[0] if rounds else ()
        return {size: round(statistics.median(times[size] for times in rounds), 9) for size in sizes}

    def timed(m: Measurement) -> Measurement:
        encode, prefill, decode = (median(m.plan, stage) for stage in STAGES)
        chat = m.chat and replace(m.chat, encode_s=encode, prefill_s=prefill, decode_s=decode)
        return replace(m, chat=chat, latency_s={n: round(encode[n] + prefill[n], 9) for n in encode})

    return [timed(m) for m in state.kept]


def _search(job: ProfilingJob, state: ChatProfilingState) -> PlanSearch:
    """What was tried, and what the budget left no time for, by method."""
    late: dict[str, list[str]] = {}
    for plan in state.late:
        late.setdefault(plan.partition(":")[0], []).append(plan)
    families = tuple(
        DroppedFamily(plans[0] if len(plans) == 1 else name, len(plans), "quality", "no time was left", "")
        for name, plans in late.items()
    )
    return PlanSearch(len(job.plans), len(state.late), job.budget_s, not state.late, families)
