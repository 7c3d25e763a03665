"""The default ladder of a model, measured again: latency beside top-1, and what content adds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.plan import Plan
from foveate.models.profiling.content_profile import CERTAINTIES
from foveate.models.profiling.timing import mean_batch_seconds
from foveate.models.runners.image import TorchRunner
from foveate.models.zoo.heldout import heldout

BATCH, SMALL_BATCH = 32, 8
PICTURES = 96

Seconds = dict[tuple[str, int], list[float]]
"""Of a batch by plan and batch size, one figure a round."""


@dataclass(frozen=True, slots=True)
class Step:
    """One plan, on pictures that the content rungs have not learnt from."""

    plan: str
    top1: float
    gflops: float
    ms: float
    """Milliseconds a picture in batches of BATCH, the median over rounds."""
    speedup: float
    """Over full, as the median of ratios inside a round."""
    ms_small: float
    """Milliseconds a picture in batches of SMALL_BATCH."""
    speedup_small: float


def unseen(runner: TorchRunner, seed: int) -> list[int]:
    """The half of the held-out scenes that `foveate profile` judged on."""
    every = np.random.default_rng(seed).permutation(len(heldout()))
    return sorted(every[len(every) // 2 :].tolist())


def measure(runner: TorchRunner, seed: int, rounds: int) -> list[Step]:
    """Every fixed rung of the ladder, and every certainty of content, cheapest first."""
    scenes, full = heldout(), runner.full
    indices = unseen(runner, seed)
    pixels = [picture for i, picture in enumerate(scenes.pixels(full.image_size)) if i in set(indices)]
    targets = scenes.targets[indices]
    plans = {rung.plan.relative_to(full): rung.plan for rung in runner.card.ladder}
    plans |= {f"content:{c}": runner.card.plan(f"content:{c}") for c in CERTAINTIES}
    seconds = _seconds(runner, plans, pixels, rounds)
    steps = []
    for name, plan in plans.items():
        right, gflops = _answers(runner, plan, pixels, targets)
        times = [_speed(seconds, name, size) for size in (BATCH, SMALL_BATCH)]
        steps.append(Step(name, right, gflops, *times[0], *times[1]))
    return sorted(steps, key=lambda step: step.ms)


def _speed(seconds: Seconds, plan: str, size: int) -> tuple[float, float]:
    """Milliseconds a picture, and how many times faster than full."""
    full, own = seconds["full", size], seconds[plan, size]
    faster = statistics.median(a / b for a, b in zip(full, own, strict=True))
    return 1e3 * statistics.median(own) / size, faster


def _seconds(
    runner: TorchRunner, plans: Mapping[str, Plan], pixels: Sequence[NDArray[np.uint8]], rounds: int
) -> Seconds:
    """Mean seconds of a batch, round by round, over the same pictures for every plan."""
    seconds: Seconds = {(name, size): [] for name in plans for size in (BATCH, SMALL_BATCH)}
    for number in range(rounds + 1):
        drawn = np.random.default_rng(number).permutation(len(pixels))[:PICTURES]
        chosen = [pixels[index] for index in drawn]
        for (name, size), found in seconds.items():
            found.append(mean_batch_seconds(runner, plans[name], chosen, size))
    return {key: found[1:] for key, found in seconds.items()}  # the first round warmed up


def _answers(
    runner: TorchRunner, plan: Plan, pixels: Sequence[NDArray[np.uint8]], targets: NDArray[np.int64]
) -> tuple[float, float]:
    """Top-1 and mean GFLOPs."""
    right, gflops = 0, 0.0
    for first in range(0, len(pixels), BATCH):
        results = runner.run(runner.stack(pixels[first : first + BATCH], plan), plan)
        for result, target in zip(results, targets[first : first + BATCH], strict=True):
            if not isinstance(result, Exception):
                right += int(result.scores.argmax() == target)
                gflops += result.gflops
    return right / len(pixels), gflops / len(pixels)


Points = Sequence[tuple[float, float]]
"""Milliseconds a picture and top-1 of rungs that are the same for every picture."""


def best_fixed(fixed: Points, ms: float) -> float:
    """Top-1 of the best that takes no longer."""
    return max((top1 for cost, top1 in fixed if cost <= ms), default=0.0)


def mixed(fixed: Points, ms: float) -> float:
    """Top-1 of the best random assignment of two of them with this mean latency."""
    best = best_fixed(fixed, ms)
    for cheap, low in fixed:
        for dear, high in fixed:
            if cheap <= ms < dear:
                best = max(best, low + (ms - cheap) / (dear - cheap) * (high - low))
    return best


def draw(steps: Sequence[Step], path: Path) -> None:
    """Top-1 over latency: fixed rungs joined by a line, content-chosen ones above it."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for label, colour, mark in (("fixed rungs", "#0072B2", "o"), ("content picks", "#D55E00", "^")):
        found = [s for s in steps if ("content" in s.plan) == (mark == "^")]
        axis.plot(
            [s.ms for s in found], [100 * s.top1 for s in found], marker=mark, color=colour, label=label
        )
        for step in found:
            where, side = ((5, -9), "left") if mark == "o" else ((-6, 3), "right")
            axis.annotate(
                step.plan, (step.ms, 100 * step.top1), where, textcoords="offset points", fontsize=7, ha=side
            )
    axis.set(xlabel=f"milliseconds a picture, in batches of {BATCH}", ylabel="top-1, %", xscale="log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
