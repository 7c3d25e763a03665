"""Learn to choose a rung by content on half of the images, and measure that choice on the other half."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foveate.core.content import ContentRungs
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, mark_rungs
from foveate.models.profiling.dataset import DecodedDataset, ReportProgress
from foveate.models.profiling.logistic import fit
from foveate.models.profiling.timing import FAILED, RoundTimes, mean_batch_seconds
from foveate.models.runners.classifier import ClassifierRunner

ROUTER_QUALITY = 0.8
"""Lowest quality of a router. One that is wrong more often is not worth its cost."""
RELIABLE_QUALITY = 0.99
"""Lowest quality of the rung that answers after the router."""
TARGET_QUALITY = 0.985
"""The router is chosen that reaches this quality at the least cost."""
MAX_ROUTERS = 6
CERTAINTIES = ("0.8", "0.9", "0.95", "0.98")
"""The arguments of `content:` that are measured."""

ReportStep = Callable[[str, int, int], None]
"""Called with a description of the current step, the number of steps done, and the total."""


def choices(profile: Profile) -> list[tuple[Measurement, ...]]:
    """Rungs to choose between, for each router: the router, the cheapest reliable rung above it, and full."""
    ladder = [m for m in profile.ladder if "content" not in m.plan]
    reliable = next(m for m in ladder if m.quality >= RELIABLE_QUALITY or m is profile.full)
    routers = [m for m in ladder if m.quality >= ROUTER_QUALITY and _cost(m) < _cost(reliable)]
    above = (reliable,) if reliable is profile.full else (reliable, profile.full)
    return [(router, *above) for router in routers[-MAX_ROUTERS:]]


def _cost(m: Measurement) -> float:
    return m.seconds or m.gflops


@dataclass(frozen=True, slots=True)
class LearnedContent:
    """The state of learning and measuring the choice by content. A part of the partial profile file."""

    content: ContentRungs | None = None
    kept: tuple[Measurement, ...] = ()
    """The quality at each certainty, without latencies."""
    rounds: tuple[RoundTimes, ...] = ()
    """With full's times, so that shares of them compare with the latencies of the other plans."""


def learning_steps(
    runner: ClassifierRunner,
    images: DecodedDataset,
    profile: Profile,
    batch_sizes: Sequence[int],
    rounds: int,
    learned: LearnedContent,
    report: ReportStep,
) -> Iterator[LearnedContent]:
    """The state after each step that is left to do: learning, quality, then each round of timing.

    `learned` is the state to start from. There are no steps if the ladder has no router.
    """
    offered = choices(profile)
    if not offered or len(images) < 2:
        return
    first_half, second_half = images.dataset.halves(profile.seed)
    if not first_half:
        return
    steps = len(_plans(offered)) + 1 + rounds
    if learned.content is None:

        def report_plan(done: int, _: int) -> None:
            report("learning the choice by content", done, steps)

        content = learn(runner, images, first_half, offered, report_plan)
        if content is None:
            report("no choice by content: every router failed on an image", steps, steps)
            return
        yield (learned := LearnedContent(content))
    runner.content = learned.content
    if not learned.kept:
        report("quality by content", steps - rounds - 1, steps)
        yield (learned := replace(learned, kept=_qualities(runner, images, second_half)))
    for number in range(len(learned.rounds), rounds if learned.kept else 0):
        report("latency by content", steps - rounds + number, steps)
        times = _times(runner, images, second_half, batch_sizes, number)
        yield (learned := replace(learned, rounds=(*learned.rounds, times)))
    report("choice by content measured", steps, steps)


def with_content(profile: Profile, learned: LearnedContent) -> Profile:
    """The profile with the choice by content and its measurements; unchanged if there are none."""
    if not learned.kept:
        return profile
    full = profile.full.latency_s
    timed = [replace(m, latency_s=_latency(full, learned.rounds, m.plan)) for m in learned.kept]
    return replace(profile, content=learned.content, measurements=mark_rungs([*profile.measurements, *timed]))


def _plans(offered: Sequence[tuple[Measurement, ...]]) -> list[str]:
    return list(dict.fromkeys(m.plan for rungs in offered for m in rungs))


def learn(
    runner: ClassifierRunner,
    images: DecodedDataset,
    indices: Sequence[int],
    offered: Sequence[tuple[Measurement, ...]],
    report: ReportProgress,
) -> ContentRungs | None:
    """Fit when each rung suffices, given the router's answer, for the best of the routers.

    The best router reaches TARGET_QUALITY at the least cost. None if every router fails on some image.
    `report` gets the number of plans that have run.
    """
    plans, results = _plans(offered), {}
    for number, text in enumerate(plans):
        results[text] = run_plan(runner, images, indices, Plan.parse(text, runner.full))
        report(number + 1, len(plans))
    sufficient = suffices({text: top1_classes(r) for text, r in results.items()}, images, indices)
    trials = []
    for rungs in offered:
        scores = [result.scores for result in results[rungs[0].plan] if isinstance(result, Result)]
        if len(scores) == len(indices):
            kept = np.stack([sufficient[m.plan] for m in rungs], axis=1)
            trials.append(_fitted(rungs, np.stack(scores), kept))
    return min(trials, key=lambda trial: trial[0])[1] if trials else None


def suffices(
    classes: Mapping[str, NDArray[np.int64]], images: DecodedDataset, indices: Sequence[int]
) -> dict[str, NDArray[np.bool_]]:
    """For each plan and image, whether the plan's class is as good as full's. Each value: (N,) bool."""
    full, targets = classes["full"], images.dataset.targets
    correct = full if targets is None else np.array([targets[index] for index in indices])
    # Any rung suffices if full is wrong or failed: there is no right answer to keep.
    nothing_to_keep = (full != correct) | (full == FAILED)
    return {text: (predicted == correct) | nothing_to_keep for text, predicted in classes.items()}


def _fitted(
    rungs: Sequence[Measurement], scores: NDArray[np.float32], kept: NDArray[np.bool_]
) -> tuple[float, ContentRungs]:
    """The cost of an image at TARGET_QUALITY with this router, and the fitted choice.

    scores: (N, C) of the router; kept: (N, R), whether each rung suffices.
    """
    content = fit([m.plan for m in rungs], scores, kept[:, :-1])
    costs = np.array([_cost(m) for m in rungs])
    cost = costs.sum()
    for certainty in CERTAINTIES:
        choice = content.choose(scores, float(certainty))
        if kept[np.arange(len(choice)), choice].mean() >= TARGET_QUALITY:
            cost = min(cost, float((costs[choice] * (choice > 0)).mean() + costs[0]))
    return cost, content


def run_plan(
    runner: ClassifierRunner, images: DecodedDataset, indices: Sequence[int], plan: Plan
) -> list[Result | Exception]:
    """The results of a plan for the images at these indices, in the same order."""
    results: list[Result | Exception] = []
    for first in range(0, len(indices), runner.max_batch):
        pixels = images.at(list(indices[first : first + runner.max_batch]))
        results += runner.run(runner.stack(pixels, plan), plan)
    return results


def top1_classes(results: Sequence[Result | Exception]) -> NDArray[np.int64]:
    """The class index of each result, or FAILED: (N,)."""
    return np.array([FAILED if isinstance(r, Exception) else int(r.scores.argmax()) for r in results])


def _qualities(
    runner: ClassifierRunner, images: DecodedDataset, indices: Sequence[int]
) -> tuple[Measurement, ...]:
    """The quality at each certainty, on images that were not learned from.

    Empty if full is right on none of them.
    """
    full = top1_classes(run_plan(runner, images, indices, runner.full))
    targets = images.dataset.targets
    correct = full if targets is None else np.array([targets[index] for index in indices])
    counted = correct != FAILED  # without labels, an image that full fails on has no right answer
    full_correct = (full == correct) & counted
    measurements = []
    for plan in _content_plans(runner):
        results = run_plan(runner, images, indices, plan)
        succeeded = [result for result in results if isinstance(result, Result)]
        if not succeeded or not full_correct.any():
            continue
        equal = (top1_classes(results) == correct) & counted
        measurement = Measurement(
            plan=plan.relative_to(runner.full),
            quality=round(min(1.0, float(equal.sum() / full_correct.sum())), 6),
            accuracy=None if targets is None else round(float(equal.mean()), 6),
            gflops=round(statistics.fmean(result.gflops for result in succeeded), 6),
            tokens=round(statistics.fmean(result.tokens for result in succeeded)),
            latency_s={},
        )
        measurements.append(measurement)
    return tuple(measurements)


def _content_plans(runner: ClassifierRunner) -> list[Plan]:
    return [replace(runner.full, content=certainty) for certainty in CERTAINTIES]


def _latency(full: Mapping[int, float], rounds: Sequence[RoundTimes], plan: str) -> dict[int, float]:
    """Median seconds of a plan by batch size: full's latency times the plan's share of full.

    The share is taken inside each round, so that the result compares with earlier latencies.
    """
    if not full or not rounds:
        return {}
    latency = {}
    for size in full:
        share = statistics.median(times[plan][size] / times["full"][size] for times in rounds)
        latency[size] = round(full[size] * share, 9)
    return latency


def _times(
    runner: ClassifierRunner,
    images: DecodedDataset,
    indices: Sequence[int],
    batch_sizes: Sequence[int],
    number: int,
) -> RoundTimes:
    """Seconds by plan and batch size in one round, on the same images for all plans."""
    plans, count = [runner.full, *_content_plans(runner)], 2 * max(batch_sizes)
    pixels = images.at(np.take(indices, range(number * count, (number + 1) * count), mode="wrap").tolist())
    times: dict[str, dict[int, float]] = {plan.relative_to(runner.full): {} for plan in plans}
    for size in batch_sizes:
        for plan in plans:
            times[plan.relative_to(runner.full)][size] = mean_batch_seconds(runner, plan, pixels, size)
    return times
