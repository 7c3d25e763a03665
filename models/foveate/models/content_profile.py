"""Teach a ladder to choose by content: learn on half of the pictures, measure on the other half."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foveate.core.content import CONTENT_BATCHES, ContentRungs, fit
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, choose
from foveate.models.pictures import Album
from foveate.models.runner import TorchRunner
from foveate.models.timing import seconds_each

SCOUT_QUALITY = 0.8
"""A scout that is wrong more often tells too little for what it costs."""
RELIABLE = 0.99
"""What the rung behind the scout keeps of full's accuracy at least."""
WANTED = 0.985
"""The scout is taken with which keeping this much costs least."""
MOST_SCOUTS = 6
CERTAINTIES = ("0.8", "0.9", "0.95", "0.98")
"""What `content:` is measured with."""

Told = Callable[[int, int], None]


def choices(profile: Profile) -> list[tuple[Measurement, ...]]:
    """Rungs to choose from, one tuple a scout: the scout, the cheapest reliable rung above it, and full."""
    ladder = [m for m in profile.ladder if "content" not in m.plan]
    reliable = next(m for m in ladder if m.quality >= RELIABLE or m is profile.full)
    scouts = [m for m in ladder if m.quality >= SCOUT_QUALITY and _cost(m) < _cost(reliable)]
    above = (reliable,) if reliable is profile.full else (reliable, profile.full)
    return [(scout, *above) for scout in scouts[-MOST_SCOUTS:]]


def _cost(m: Measurement) -> float:
    return m.seconds or m.gflops


def with_content(
    runner: TorchRunner, album: Album, profile: Profile, batch_sizes: Sequence[int], rounds: int, told: Told
) -> Profile:
    """The profile with what picks a rung by content, and what that keeps and costs on pictures it has
    not learnt from. A ladder with nothing to choose between stays as it is."""
    offered = choices(profile)
    if not offered or len(album) < 2:
        return profile
    every = np.random.default_rng(profile.seed).permutation(len(album))
    half = len(every) // 2
    content = learn(runner, album, every[:half].tolist(), offered, told)
    if content is None:
        return profile
    measured = list(_measured(runner, album, every[half:].tolist(), content, profile, batch_sizes, rounds))
    if not measured:
        return profile
    return replace(profile, content=content, measurements=choose([*profile.measurements, *measured]))


def learn(
    runner: TorchRunner,
    album: Album,
    indices: Sequence[int],
    offered: Sequence[tuple[Measurement, ...]],
    told: Told,
) -> ContentRungs | None:
    """What the answers of the best scout say about each rung, on these pictures.

    Best is the scout with which WANTED of full's right answers are kept at the least cost. None where
    every scout fails on some picture.
    """
    plans = list(dict.fromkeys(m.plan for rungs in offered for m in rungs))
    found = {}
    for number, text in enumerate(plans):
        found[text] = answered(runner, album, indices, Plan.parse(text, runner.full))
        told(number + 1, len(plans))
    enough = suffices({text: named(results) for text, results in found.items()}, album, indices)
    tried = []
    for rungs in offered:
        scouted = [result.scores for result in found[rungs[0].plan] if isinstance(result, Result)]
        if len(scouted) == len(indices):
            kept = np.stack([enough[m.plan] for m in rungs], axis=1)
            tried.append(_fitted(rungs, np.stack(scouted), kept))
    return min(tried, key=lambda trial: trial[0])[1] if tried else None


def suffices(
    answers: Mapping[str, NDArray[np.int64]], album: Album, indices: Sequence[int]
) -> dict[str, NDArray[np.bool_]]:
    """For which of the pictures each plan's answer is as good as full's."""
    full, targets = answers["full"], album.pictures.targets
    if targets is None:
        return {text: named == full for text, named in answers.items()}
    # Where full is wrong there is nothing to keep, so that any rung suffices.
    right = np.array([targets[index] for index in indices])
    return {text: (named == right) | (full != right) for text, named in answers.items()}


def _fitted(
    rungs: Sequence[Measurement], scores: NDArray[np.float32], kept: NDArray[np.bool_]
) -> tuple[float, ContentRungs]:
    """What keeping WANTED costs a picture with this scout, and the scout with what was learnt."""
    content = fit([m.plan for m in rungs], scores, kept[:, :-1])
    costs = np.array([_cost(m) for m in rungs])
    best = costs.sum()
    for certainty in CERTAINTIES:
        choice = content.choose(scores, float(certainty))
        if kept[np.arange(len(choice)), choice].mean() >= WANTED:
            best = min(best, float((costs[choice] * (choice > 0)).mean() + costs[0]))
    return best, content


def answered(
    runner: TorchRunner, album: Album, indices: Sequence[int], plan: Plan
) -> list[Result | Exception]:
    """What some pictures get under a plan, in the order of the indices."""
    results: list[Result | Exception] = []
    for first in range(0, len(indices), runner.max_batch):
        pixels = album.at(list(indices[first : first + runner.max_batch]))
        results += runner.run(runner.stack(pixels, plan), plan)
    return results


def named(results: Sequence[Result | Exception]) -> NDArray[np.int64]:
    """Class index of each answer, -1 where there is none."""
    return np.array([-1 if isinstance(r, Exception) else int(r.scores.argmax()) for r in results])


def _measured(
    runner: TorchRunner,
    album: Album,
    indices: Sequence[int],
    content: ContentRungs,
    profile: Profile,
    batch_sizes: Sequence[int],
    rounds: int,
) -> Iterator[Measurement]:
    """Each certainty on the half that nothing was learnt from."""
    runner.content = content
    full = runner.full
    plans = [replace(full, content=certainty) for certainty in CERTAINTIES]
    of_full = named(answered(runner, album, indices, full))
    targets = album.pictures.targets
    right = of_full if targets is None else np.array([targets[index] for index in indices])
    if not (of_full == right).any():
        return  # nothing to keep in this half
    times = _times(runner, album, [full, *plans], batch_sizes, rounds, indices)
    for plan in plans:
        results = answered(runner, album, indices, plan)
        given = [result for result in results if isinstance(result, Result)]
        if not given:
            continue
        accuracy = float((named(results) == right).mean())
        yield Measurement(
            plan=plan.beside(full),
            quality=round(min(1.0, accuracy / float((of_full == right).mean())), 6),
            accuracy=None if targets is None else round(accuracy, 6),
            gflops=round(statistics.fmean(result.gflops for result in given), 6),
            tokens=round(statistics.fmean(result.tokens for result in given)),
            latency_s=_latency(profile.full.latency_s, times[plan], times[full]),
        )


def _latency(
    full: Mapping[int, float], own: Mapping[int, list[float]], whole: Mapping[int, list[float]]
) -> dict[int, float]:
    """Median seconds by number of pictures: as a share of full in the same round, so that they compare
    with what was timed before. Full takes what is more than its largest batch in several."""
    if not full:
        return {}
    largest = max(full)
    known = {size: full[min(size, largest)] * max(1, size // largest) for size in own}
    ratios = {
        size: statistics.median(a / b for a, b in zip(own[size], whole[size], strict=True)) for size in own
    }
    return {size: round(known[size] * ratios[size], 9) for size in own}


def _times(
    runner: TorchRunner,
    album: Album,
    plans: Sequence[Plan],
    batch_sizes: Sequence[int],
    rounds: int,
    indices: Sequence[int],
) -> dict[Plan, dict[int, list[float]]]:
    """Seconds by plan and number of pictures, one figure a round, the same pictures for all.

    Pictures whose content picks the rung are also timed several batches at a time, as the engine takes
    them: the few that a dearer rung is for are then worth a batch of their own.
    """
    sizes = (*batch_sizes, CONTENT_BATCHES * max(batch_sizes))
    times: dict[Plan, dict[int, list[float]]] = {plan: {size: [] for size in sizes} for plan in plans}
    count = 2 * max(sizes)
    for number in range(rounds):
        drawn = np.take(indices, range(number * count, (number + 1) * count), mode="wrap").tolist()
        pixels = album.at(drawn)
        for size in sizes:
            for plan in plans:
                if plan.content is None and size > max(batch_sizes):
                    one = seconds_each(runner, plan, pixels, max(batch_sizes))
                    times[plan][size].append(one * size / max(batch_sizes))
                else:
                    times[plan][size].append(seconds_each(runner, plan, pixels, size))
    return times
