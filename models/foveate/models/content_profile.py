"""Teach a ladder to choose by content: learn on half of the pictures, measure on the other half."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foveate.core.content import ContentRungs, fit
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, choose
from foveate.models.pictures import Album
from foveate.models.runner import TorchRunner
from foveate.models.timing import seconds_each

SCOUT_QUALITY = 0.8
"""A scout that is wrong more often tells too little for what it costs."""
SPACING = 1.3
"""Rungs closer in cost than this are one choice."""
MOST_RUNGS = 5
CERTAINTIES = ("0.8", "0.9", "0.95", "0.98")
"""What `content:` is measured with."""

Told = Callable[[int, int], None]


def rungs_of(profile: Profile) -> tuple[str, ...]:
    """What there is to choose from, cheapest first: a scout, the best spaced rungs above it, and full."""
    ladder = [m for m in profile.ladder if m.quality >= SCOUT_QUALITY and "content" not in m.plan]
    chosen = ladder[:1]
    for m in ladder[1:-1]:
        if _cost(m) >= SPACING * _cost(chosen[-1]) and SPACING * _cost(m) <= _cost(ladder[-1]):
            chosen.append(m)
    if len(ladder) > 1:
        chosen = [*chosen[: MOST_RUNGS - 1], ladder[-1]]
    return tuple(m.plan for m in chosen)


def _cost(m: Measurement) -> float:
    return m.seconds or m.gflops


def with_content(
    runner: TorchRunner, album: Album, profile: Profile, batch_sizes: Sequence[int], rounds: int, told: Told
) -> Profile:
    """The profile with what picks a rung by content, and what that keeps and costs on pictures it has
    not learnt from. A ladder with nothing to choose between stays as it is."""
    rungs = rungs_of(profile)
    if len(rungs) < 2 or len(album) < 2:
        return profile
    every = np.random.default_rng(profile.seed).permutation(len(album))
    half = len(every) // 2
    content = learn(runner, album, every[:half].tolist(), rungs, told)
    if content is None:
        return profile
    measured = list(_measured(runner, album, every[half:].tolist(), content, profile, batch_sizes, rounds))
    if not measured:
        return profile
    return replace(profile, content=content, measurements=choose([*profile.measurements, *measured]))


def learn(
    runner: TorchRunner, album: Album, indices: Sequence[int], rungs: tuple[str, ...], told: Told
) -> ContentRungs | None:
    """What the scout's answers on these pictures say about each rung; None where the scout fails."""
    answers: dict[str, NDArray[np.int64]] = {}
    scores: list[NDArray[np.float32]] = []
    for number, text in enumerate(rungs):
        plan = Plan.parse(text, runner.full)
        found = answered(runner, album, indices, plan)
        told(number + 1, len(rungs))
        answers[text] = named(found)
        if number == 0:
            if any(isinstance(result, Exception) for result in found):
                return None
            scores = [result.scores for result in found if isinstance(result, Result)]
    wanted = answers[rungs[-1]]
    targets = album.pictures.targets
    if targets is not None:
        # Where full is wrong there is nothing to keep, so that any rung suffices.
        right = np.array([targets[index] for index in indices])
        suffices = [(answers[text] == right) | (wanted != right) for text in rungs[:-1]]
    else:
        suffices = [answers[text] == wanted for text in rungs[:-1]]
    return fit(rungs, np.stack(scores), np.stack(suffices, axis=1))


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
        accuracy = float((named(results) == right).mean())
        yield Measurement(
            plan=plan.beside(full),
            quality=round(min(1.0, accuracy / float((of_full == right).mean())), 6),
            accuracy=None if targets is None else round(accuracy, 6),
            gflops=round(statistics.fmean(result.gflops for result in given), 6),
            tokens=round(statistics.fmean(result.tokens for result in given)),
            latency_s={
                # Relative to full in the same rounds, so that it compares with what was timed before.
                size: round(
                    profile.full.latency_s[size]
                    * statistics.median(
                        own / whole for own, whole in zip(times[plan][size], times[full][size], strict=True)
                    ),
                    9,
                )
                for size in batch_sizes
                if size in profile.full.latency_s
            },
        )


def _times(
    runner: TorchRunner,
    album: Album,
    plans: Sequence[Plan],
    batch_sizes: Sequence[int],
    rounds: int,
    indices: Sequence[int],
) -> dict[Plan, dict[int, list[float]]]:
    """Seconds a batch by plan and size, one figure a round; the pictures of a round are the same for all."""
    times: dict[Plan, dict[int, list[float]]] = {plan: {size: [] for size in batch_sizes} for plan in plans}
    count = 4 * max(batch_sizes)
    for number in range(rounds):
        drawn = np.take(indices, range(number * count, (number + 1) * count), mode="wrap").tolist()
        pixels = album.at(drawn)
        for size in batch_sizes:
            for plan in plans:
                times[plan][size].append(seconds_each(runner, plan, pixels, size))
    return times
