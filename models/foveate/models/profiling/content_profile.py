"""Teach a ladder to choose by content: learn on half of the pictures, measure on the other half."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foveate.core.content import ContentRungs
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, mark_rungs
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.logistic import fit
from foveate.models.profiling.timing import FAILED, Times, seconds_each
from foveate.models.runners.image import TorchRunner

ROUTER_QUALITY = 0.8
"""A router that is wrong more often tells too little for what it costs."""
RELIABLE = 0.99
"""What the rung behind the router keeps of full's accuracy at least."""
WANTED = 0.985
"""The router is taken with which keeping this much costs least."""
MOST_ROUTERS = 6
CERTAINTIES = ("0.8", "0.9", "0.95", "0.98")
"""What `content:` is measured with."""

Told = Callable[[int, int], None]
"""Called with how many plans have answered, and of how many."""
Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much of all that is, and out of how much."""


def choices(profile: Profile) -> list[tuple[Measurement, ...]]:
    """Rungs to choose from, one tuple a router: the router, the cheapest reliable rung above it, and full."""
    ladder = [m for m in profile.ladder if "content" not in m.plan]
    reliable = next(m for m in ladder if m.quality >= RELIABLE or m is profile.full)
    routers = [m for m in ladder if m.quality >= ROUTER_QUALITY and _cost(m) < _cost(reliable)]
    above = (reliable,) if reliable is profile.full else (reliable, profile.full)
    return [(router, *above) for router in routers[-MOST_ROUTERS:]]


def _cost(m: Measurement) -> float:
    return m.seconds or m.gflops


@dataclass(frozen=True, slots=True)
class Learnt:
    """How far choosing by content has come."""

    content: ContentRungs | None = None
    kept: tuple[Measurement, ...] = ()
    """What each certainty keeps; none of them timed."""
    rounds: tuple[Times, ...] = ()
    """Full's seconds too: shares of those compare with what was timed before."""


def learning(
    runner: TorchRunner,
    album: DecodedDataset,
    profile: Profile,
    batch_sizes: Sequence[int],
    rounds: int,
    learnt: Learnt,
    watch: Watch,
) -> Iterator[Learnt]:
    """What is known after each step that is not done yet: what was learnt, what that keeps on the other
    half of the pictures, then each round of timing. A ladder with nothing to choose between teaches
    nothing."""
    offered = choices(profile)
    if not offered or len(album) < 2:
        return
    every = np.random.default_rng(profile.seed).permutation(len(album)).tolist()
    first, second = every[: len(every) // 2], every[len(every) // 2 :]
    steps = len(_plans(offered)) + 1 + rounds
    if learnt.content is None:

        def told(done: int, _: int) -> None:
            watch("learning what the content asks for", done, steps)

        content = learn(runner, album, first, offered, told)
        if content is None:
            watch("content says too little", steps, steps)
            return
        yield (learnt := Learnt(content))
    runner.content = learnt.content
    if not learnt.kept:
        watch("quality by content", steps - rounds - 1, steps)
        yield (learnt := replace(learnt, kept=_kept(runner, album, second)))
    for number in range(len(learnt.rounds), rounds if learnt.kept else 0):
        watch("latency by content", steps - rounds + number, steps)
        times = _times(runner, album, second, batch_sizes, number)
        yield (learnt := replace(learnt, rounds=(*learnt.rounds, times)))
    watch("chosen by content", steps, steps)


def with_content(profile: Profile, learnt: Learnt) -> Profile:
    """The profile with what picks a rung by content, and what that keeps and costs on pictures it has
    not learnt from; as it was where that is not known."""
    if not learnt.kept:
        return profile
    full = profile.full.latency_s
    timed = [replace(m, latency_s=_latency(full, learnt.rounds, m.plan)) for m in learnt.kept]
    return replace(profile, content=learnt.content, measurements=mark_rungs([*profile.measurements, *timed]))


def _plans(offered: Sequence[tuple[Measurement, ...]]) -> list[str]:
    return list(dict.fromkeys(m.plan for rungs in offered for m in rungs))


def learn(
    runner: TorchRunner,
    album: DecodedDataset,
    indices: Sequence[int],
    offered: Sequence[tuple[Measurement, ...]],
    told: Told,
) -> ContentRungs | None:
    """What the answers of the best router say about each rung, on these pictures.

    Best is the router with which WANTED of full's right answers are kept at the least cost. None where
    every router fails on some picture.
    """
    plans, found = _plans(offered), {}
    for number, text in enumerate(plans):
        found[text] = answered(runner, album, indices, Plan.parse(text, runner.full))
        told(number + 1, len(plans))
    enough = suffices({text: named(results) for text, results in found.items()}, album, indices)
    tried = []
    for rungs in offered:
        routed = [result.scores for result in found[rungs[0].plan] if isinstance(result, Result)]
        if len(routed) == len(indices):
            kept = np.stack([enough[m.plan] for m in rungs], axis=1)
            tried.append(_fitted(rungs, np.stack(routed), kept))
    return min(tried, key=lambda trial: trial[0])[1] if tried else None


def suffices(
    answers: Mapping[str, NDArray[np.int64]], album: DecodedDataset, indices: Sequence[int]
) -> dict[str, NDArray[np.bool_]]:
    """For which of the pictures each plan's answer is as good as full's."""
    full, targets = answers["full"], album.pictures.targets
    right = full if targets is None else np.array([targets[index] for index in indices])
    # Where full is wrong, or silent, there is nothing to keep, so that any rung suffices.
    nothing = (full != right) | (full == FAILED)
    return {text: (named == right) | nothing for text, named in answers.items()}


def _fitted(
    rungs: Sequence[Measurement], scores: NDArray[np.float32], kept: NDArray[np.bool_]
) -> tuple[float, ContentRungs]:
    """What keeping WANTED costs a picture with this router, and the router with what was learnt."""
    content = fit([m.plan for m in rungs], scores, kept[:, :-1])
    costs = np.array([_cost(m) for m in rungs])
    best = costs.sum()
    for certainty in CERTAINTIES:
        choice = content.choose(scores, float(certainty))
        if kept[np.arange(len(choice)), choice].mean() >= WANTED:
            best = min(best, float((costs[choice] * (choice > 0)).mean() + costs[0]))
    return best, content


def answered(
    runner: TorchRunner, album: DecodedDataset, indices: Sequence[int], plan: Plan
) -> list[Result | Exception]:
    """What some pictures get under a plan, in the order of the indices."""
    results: list[Result | Exception] = []
    for first in range(0, len(indices), runner.max_batch):
        pixels = album.at(list(indices[first : first + runner.max_batch]))
        results += runner.run(runner.stack(pixels, plan), plan)
    return results


def named(results: Sequence[Result | Exception]) -> NDArray[np.int64]:
    """Class index of each answer, or FAILED."""
    return np.array([FAILED if isinstance(r, Exception) else int(r.scores.argmax()) for r in results])


def _kept(runner: TorchRunner, album: DecodedDataset, indices: Sequence[int]) -> tuple[Measurement, ...]:
    """What each certainty keeps of full on pictures that nothing was learnt from; nothing where full has
    nothing to keep."""
    of_full = named(answered(runner, album, indices, runner.full))
    targets = album.pictures.targets
    right = of_full if targets is None else np.array([targets[index] for index in indices])
    wanted = right != FAILED  # whom full gives no answer tells nothing of agreement with it
    of_full = (of_full == right) & wanted
    kept = []
    for plan in _by_content(runner):
        results = answered(runner, album, indices, plan)
        given = [result for result in results if isinstance(result, Result)]
        if not given or not of_full.any():
            continue
        same = (named(results) == right) & wanted
        measured = Measurement(
            plan=plan.relative_to(runner.full),
            quality=round(min(1.0, float(same.sum() / of_full.sum())), 6),
            accuracy=None if targets is None else round(float(same.mean()), 6),
            gflops=round(statistics.fmean(result.gflops for result in given), 6),
            tokens=round(statistics.fmean(result.tokens for result in given)),
            latency_s={},
        )
        kept.append(measured)
    return tuple(kept)


def _by_content(runner: TorchRunner) -> list[Plan]:
    return [replace(runner.full, content=certainty) for certainty in CERTAINTIES]


def _latency(full: Mapping[int, float], rounds: Sequence[Times], plan: str) -> dict[int, float]:
    """Median seconds by number of pictures: as a share of full in the same round, so that they compare
    with what was timed before."""
    if not full or not rounds:
        return {}
    found = {}
    for size in full:
        share = statistics.median(times[plan][size] / times["full"][size] for times in rounds)
        found[size] = round(full[size] * share, 9)
    return found


def _times(
    runner: TorchRunner,
    album: DecodedDataset,
    indices: Sequence[int],
    batch_sizes: Sequence[int],
    number: int,
) -> Times:
    """Seconds by plan and number of pictures in one round, the same pictures for all."""
    plans, count = [runner.full, *_by_content(runner)], 2 * max(batch_sizes)
    pixels = album.at(np.take(indices, range(number * count, (number + 1) * count), mode="wrap").tolist())
    times: dict[str, dict[int, float]] = {plan.relative_to(runner.full): {} for plan in plans}
    for size in batch_sizes:
        for plan in plans:
            times[plan.relative_to(runner.full)][size] = seconds_each(runner, plan, pixels, size)
    return times
