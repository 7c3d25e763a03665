"""Screen many plans on few images, so that only plans near the frontier are measured on all of them.

See `screening_rules` for the method. Each stage has more images and fewer plans than the one before.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import BASELINE_REDUCERS, DroppedFamily
from foveate.models.profiling.budget import TimeBudget
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.item_scores import ItemScorer
from foveate.models.profiling.profile_state import ProfilingJob, ProfilingState, ReportStage
from foveate.models.profiling.screening_rules import (
    MIN_STAGE_IMAGES,
    STAGE_IMAGES,
    DroppedPlan,
    Trial,
    affordable,
    dominated_plans,
    expected_seconds,
    ranked_by_hypervolume,
    stage_sizes,
)
from foveate.models.runners.base import ModelRunner, Pixels

SCREENING_SHARE, QUALITY_SHARE, LATENCY_SHARE = 0.35, 0.65, 0.9
"""Shares of a budget that are spent when screening, measuring quality and timing end. The rest is for the
choice by content."""
MEAN_COST = 0.6
"""Expected cost of a plan, as a share of full's."""
MIN_ROUND_IMAGES = 16
"""Fewest images in a round: the latency of a plan with exits depends on what the images show."""
FEWEST_ROUNDS = 2
"""With a budget, as many plans are timed as leave time for this number of rounds."""
CONTENT_RUNS = 2.5
"""Expected cost of learning and measuring the choice by content, in runs of full over all images."""
SMALL_BATCH_COST = 1.5
"""Expected cost of an image in the batches that are timed, relative to that in the largest batch."""
SAVE_INTERVAL_S = 1.0
"""Shortest time between two states, which are written to disk."""
NO_TIME = "the budget left no time for it"


def screening_steps(
    runner: ModelRunner,
    images: DecodedDataset,
    job: ProfilingJob,
    state: ProfilingState,
    report: ReportStage,
    budget: TimeBudget,
) -> Iterator[ProfilingState]:
    """The state after each step that is left to do: trials, and the plans that each stage drops."""
    if not job.screened:
        return
    plans = {plan.relative_to(runner.full): plan for plan in job.plans}
    if state.stages is None:
        yield (state := replace(state, stages=_stages(runner, images, len(plans), budget)))
    order = np.random.default_rng(job.seed).permutation(len(images)).tolist()
    scorer, stages = ItemScorer(runner, images), state.stages or ()
    for number in range(state.screened, len(stages)):
        trials = _Trials(runner, images, scorer, order[: stages[number]])
        stage, share = f"screening on {stages[number]} images", SCREENING_SHARE * (number + 1) / len(stages)
        left = _remaining(plans, state, job.seed)
        saved = time.monotonic()
        for done, name in enumerate(left):
            report("screening", f"{stage}: {name}", number * len(plans) + done, len(stages) * len(plans))
            if name != "full" and budget.ended(share) and not trials.done(state.trials.get(name)):
                break
            trial = trials.finish(plans[name], state.trials.get(name, Trial()))
            state = replace(state, trials={**state.trials, name: trial})
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                saved = time.monotonic()
                yield state
        state = _after_stage(state, left, stages, number, len(images), stage, budget)
        yield state
    if stages:
        kept = len(plans) - len(state.dropped)
        report("screening", f"{kept} of {len(plans)} plans remain", len(plans), len(plans))


class _Trials:
    """Runs plans on the images of one stage."""

    def __init__(
        self, runner: ModelRunner, images: DecodedDataset, scorer: ItemScorer, indices: Sequence[int]
    ) -> None:
        self.runner, self.images, self.scorer, self.indices = runner, images, scorer, indices

    def done(self, trial: Trial | None) -> bool:
        """Whether a plan has run on all images of the stage."""
        return trial is not None and len(trial.scores) >= len(self.indices)

    def finish(self, plan: Plan, trial: Trial) -> Trial:
        """The trial after the images of the stage that are left."""
        if plan == self.runner.full:
            self._learn()
        while not self.done(trial):
            start = len(trial.scores)
            chosen = self.indices[start : start + self.runner.max_batch]
            pixels = self._pixels(plan, chosen)
            started = time.perf_counter()
            results = self._run(plan, pixels)
            seconds = time.perf_counter() - started
            succeeded = [result.gflops for result in results if isinstance(result, Result)]
            # An item that failed costs what the others do.
            gflops = sum(succeeded) * len(results) / max(1, len(succeeded))
            scores = (*trial.scores, *(round(score, 4) for score in self.scorer.scores(chosen, results)))
            trial = Trial(scores, trial.gflops + gflops, trial.seconds + seconds)
        return trial

    def _learn(self) -> None:
        """Let the scorer see the right answers."""
        unknown = self.scorer.unknown(self.indices)
        for start in range(0, len(unknown), self.runner.max_batch):
            chosen = unknown[start : start + self.runner.max_batch]
            pixels = self._pixels(self.runner.full, chosen)
            self.scorer.learn(chosen, self._run(self.runner.full, pixels))

    def _pixels(self, plan: Plan, indices: Sequence[int]) -> list[Pixels]:
        """The images as the server decodes them for the plan: never smaller than for full."""
        if plan.image_size <= self.runner.full.image_size:
            return self.images.at(indices)
        return self.images.decoded_to(plan.image_size, indices)

    def _run(self, plan: Plan, pixels: Sequence[Pixels]) -> Sequence[Result | Exception]:
        return self.runner.run(self.runner.stack(pixels, plan), plan)


def _stages(runner: ModelRunner, images: DecodedDataset, plans: int, budget: TimeBudget) -> tuple[int, ...]:
    """The number of images of each stage. With a small budget, the first stages have fewer images.

    There is no stage for a model of unknown GFLOPs, whose plans cannot be compared before they are timed.
    """
    first = STAGE_IMAGES
    smallest = MIN_STAGE_IMAGES if budget.seconds is not None else first
    if not stage_sizes(plans, len(images), smallest):
        return ()
    batch = runner.stack(images.at(range(min(MIN_STAGE_IMAGES, len(images), runner.max_batch))), runner.full)
    results = runner.run(batch, runner.full)  # prepares kernels
    if not any(isinstance(result, Result) and result.gflops for result in results):
        return ()
    started = time.perf_counter()
    runner.run(batch, runner.full)
    image_s = (time.perf_counter() - started) / len(batch)
    available_s = budget.left_s(SCREENING_SHARE / 2)
    while first > MIN_STAGE_IMAGES and plans * first * image_s * MEAN_COST > available_s:
        first //= 2
    return stage_sizes(plans, len(images), first)


def _remaining(plans: Mapping[str, Plan], state: ProfilingState, seed: int) -> list[str]:
    """The plans that are not dropped, full first, the others in a seeded order: if the time ends, each kind
    of plan had its chance."""
    dropped = {drop.plan for drop in state.dropped}
    others = [name for name in plans if name != "full"]
    shuffled = [others[index] for index in np.random.default_rng(seed).permutation(len(others))]
    return [name for name in ("full", *shuffled) if name not in dropped]


def _after_stage(
    state: ProfilingState,
    left: Sequence[str],
    stages: Sequence[int],
    number: int,
    images: int,
    stage: str,
    budget: TimeBudget,
) -> ProfilingState:
    """The state with the plans that this stage drops: those without a chance, then those without time."""
    size = stages[number]
    trials = {
        name: trial.first(size)
        for name in left
        if (trial := state.trials.get(name)) is not None and len(trial.scores) >= size
    }
    untried = [DroppedPlan(name, stage, NO_TIME, by_budget=True) for name in left if name not in trials]
    baselines = frozenset(name for name in trials if is_baseline(name))
    drops = dominated_plans(trials, stage, baselines)
    gone = {drop.plan for drop in drops}
    ranked = ranked_by_hypervolume({n: trial for n, trial in trials.items() if n not in gone | baselines})
    ranked += [name for name in left if name in baselines]
    is_last = number + 1 == len(stages)
    further = images if is_last else stages[number + 1] - size
    share = QUALITY_SHARE if is_last else SCREENING_SHARE * (number + 2) / len(stages)
    seconds = {name: expected_seconds(trials, name) * further for name in ranked}
    count = affordable(ranked, seconds, budget.left_s(share))
    unaffordable = [DroppedPlan(name, stage, NO_TIME, by_budget=True) for name in ranked[count:]]
    return replace(state, dropped=(*state.dropped, *untried, *drops, *unaffordable), screened=number + 1)


def to_measure(plans: Sequence[Plan], full: Plan, state: ProfilingState) -> list[Plan]:
    """The plans that the screening left, as `ranked_by_hypervolume` orders them; baselines come last."""
    by_name = {plan.relative_to(full): plan for plan in plans}
    dropped = {drop.plan for drop in state.dropped}
    names = [name for name in by_name if name not in dropped]
    if state.stages:
        size = state.stages[-1]
        trials = {name: state.trials[name].first(size) for name in names}
        order = {name: rank for rank, name in enumerate(ranked_by_hypervolume(trials))}
        names.sort(key=lambda name: (is_baseline(name), order[name]))
    return [by_name[name] for name in names]


def drop_for_time(state: ProfilingState, stage: str, names: Sequence[str]) -> ProfilingState:
    """The state in which these plans are dropped for lack of time."""
    unaffordable = [DroppedPlan(name, stage, NO_TIME, by_budget=True) for name in names]
    return replace(state, dropped=(*state.dropped, *unaffordable))


def timed_within(names: Sequence[str], job: ProfilingJob, state: ProfilingState, budget: TimeBudget) -> int:
    """How many of these plans, from the first on, can be timed in a few rounds in the time that is left."""
    if budget.seconds is None or not state.trials:
        return len(names)
    images = sum(max(MIN_ROUND_IMAGES, *job.batch_sizes) + size for size in job.batch_sizes)
    rounds = min(FEWEST_ROUNDS, job.rounds)
    seconds = {
        name: SMALL_BATCH_COST * rounds * images * expected_seconds(state.trials, name) for name in names
    }
    return affordable(names, seconds, budget.left_s(LATENCY_SHARE))


def content_seconds(state: ProfilingState, images: int) -> float:
    """Expected seconds of learning and measuring the choice by content; 0 if the speed is unknown."""
    full = state.trials.get("full")
    return CONTENT_RUNS * images * full.image_seconds if full is not None else 0.0


def is_baseline(name: str) -> bool:
    """Whether a plan has a reducer that is measured for comparison only."""
    return any(part.partition(":")[0] in BASELINE_REDUCERS for part in name.split("/"))


def families(dropped: Sequence[DroppedPlan], variant: str) -> tuple[DroppedFamily, ...]:
    """The dropped plans by kind, stage and reason, in the order of the stages, the largest first.

    variant: the model's own name, as opposed to those of siblings.
    """
    groups: dict[tuple[str, str, str], list[DroppedPlan]] = {}
    for drop in dropped:
        groups.setdefault((drop.stage, _kind(drop.plan, variant), drop.reason), []).append(drop)
    stages = list(dict.fromkeys(drop.stage for drop in dropped))
    rows = []
    for (stage, kind, reason), drops in groups.items():
        better = Counter(drop.better for drop in drops).most_common(1)[0][0]
        rows.append(
            DroppedFamily(drops[0].plan if len(drops) == 1 else kind, len(drops), stage, reason, better)
        )
    return tuple(sorted(rows, key=lambda row: (stages.index(row.stage), -row.count, row.plans)))


def _kind(plan: str, variant: str) -> str:
    """What a plan has in common with others: the sibling that runs, and the names of its parts."""
    first, *rest = plan.split("/")
    sized = "@" in first.partition(":")[0]
    sibling = [first.partition("@")[0]] if sized and not first.startswith(f"{variant}@") else []
    names = [_part_name(part) for part in (rest if sized else [first, *rest])]
    return " + ".join([*sibling, *names]) or "image size"


def _part_name(part: str) -> str:
    """The name of a part of a plan; for exits with that of the rule, if it has one."""
    name, _, argument = part.partition(":")
    return f"{name}:{argument.partition(':')[0]}" if name == "exit" and argument[:1].isalpha() else name
