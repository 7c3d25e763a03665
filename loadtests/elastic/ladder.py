"""Measure the default ladder of a model again: latency, top-1, and the gain of content plans."""

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
IMAGES = 96

Seconds = dict[tuple[str, int], list[float]]
"""Seconds per batch, by plan and batch size; one value per round."""


@dataclass(frozen=True, slots=True)
class LadderPoint:
    """One plan, on images that the content router was not trained on."""

    plan: str
    top1: float
    gflops: float
    ms: float
    """Milliseconds per image in batches of BATCH, the median over rounds."""
    speedup: float
    """Over full, as the median of the ratios within a round."""
    ms_small: float
    """Milliseconds per image in batches of SMALL_BATCH."""
    speedup_small: float


def unseen(seed: int) -> list[int]:
    """Indices of the half of the held-out scenes that `foveate profile` evaluates on."""
    every = np.random.default_rng(seed).permutation(len(heldout()))
    return sorted(every[len(every) // 2 :].tolist())


def measure(runner: TorchRunner, seed: int, rounds: int) -> list[LadderPoint]:
    """All fixed rungs of the ladder and all content plans, the fastest first."""
    scenes, full = heldout(), runner.full
    indices = unseen(seed)
    pixels = [image for i, image in enumerate(scenes.pixels(full.image_size)) if i in set(indices)]
    targets = scenes.targets[indices]
    plans = {rung.plan.relative_to(full): rung.plan for rung in runner.card.ladder}
    plans |= {f"content:{c}": runner.card.plan(f"content:{c}") for c in CERTAINTIES}
    seconds = _seconds(runner, plans, pixels, rounds)
    points = []
    for name, plan in plans.items():
        top1, gflops = _evaluate(runner, plan, pixels, targets)
        times = [_speed(seconds, name, size) for size in (BATCH, SMALL_BATCH)]
        points.append(LadderPoint(name, top1, gflops, *times[0], *times[1]))
    return sorted(points, key=lambda point: point.ms)


def _speed(seconds: Seconds, plan: str, size: int) -> tuple[float, float]:
    """Milliseconds per image, and the speed-up over full."""
    full, own = seconds["full", size], seconds[plan, size]
    speedup = statistics.median(a / b for a, b in zip(full, own, strict=True))
    return 1e3 * statistics.median(own) / size, speedup


def _seconds(
    runner: TorchRunner, plans: Mapping[str, Plan], pixels: Sequence[NDArray[np.uint8]], rounds: int
) -> Seconds:
    """Mean seconds per batch in each round; all plans of a round run the same images."""
    seconds: Seconds = {(name, size): [] for name in plans for size in (BATCH, SMALL_BATCH)}
    for number in range(rounds + 1):
        indices = np.random.default_rng(number).permutation(len(pixels))[:IMAGES]
        chosen = [pixels[index] for index in indices]
        for (name, size), values in seconds.items():
            values.append(mean_batch_seconds(runner, plans[name], chosen, size))
    return {key: values[1:] for key, values in seconds.items()}  # the first round is the warm-up


def _evaluate(
    runner: TorchRunner, plan: Plan, pixels: Sequence[NDArray[np.uint8]], targets: NDArray[np.int64]
) -> tuple[float, float]:
    """Top-1 and mean GFLOPs."""
    correct, gflops = 0, 0.0
    for first in range(0, len(pixels), BATCH):
        results = runner.run(runner.stack(pixels[first : first + BATCH], plan), plan)
        for result, target in zip(results, targets[first : first + BATCH], strict=True):
            if not isinstance(result, Exception):
                correct += int(result.scores.argmax() == target)
                gflops += result.gflops
    return correct / len(pixels), gflops / len(pixels)


Curve = Sequence[tuple[float, float]]
"""Milliseconds per image and top-1 of fixed rungs."""


def best_fixed(fixed: Curve, ms: float) -> float:
    """Top-1 of the best rung that takes at most `ms`; 0 if there is none."""
    return max((top1 for cost, top1 in fixed if cost <= ms), default=0.0)


def fastest_near_full(points: Sequence[LadderPoint]) -> LadderPoint:
    """The fastest of these plans within a point of the accuracy of full, which is one of them."""
    full = next(point for point in points if point.plan == "full")
    return max((p for p in points if p.top1 >= full.top1 - 0.01), key=lambda point: point.speedup)


def mixed(fixed: Curve, ms: float) -> float:
    """Top-1 of the best random choice between two rungs with the mean latency `ms`."""
    best = best_fixed(fixed, ms)
    for fast_ms, fast_top1 in fixed:
        for slow_ms, slow_top1 in fixed:
            if fast_ms <= ms < slow_ms:
                share = (ms - fast_ms) / (slow_ms - fast_ms)
                best = max(best, fast_top1 + share * (slow_top1 - fast_top1))
    return best


def draw(points: Sequence[LadderPoint], path: Path) -> None:
    """Write a plot of top-1 over latency: one line for fixed rungs, one for content plans."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for label, colour, mark in (("fixed rungs", "#0072B2", "o"), ("content plans", "#D55E00", "^")):
        line = [p for p in points if ("content" in p.plan) == (mark == "^")]
        axis.plot([p.ms for p in line], [100 * p.top1 for p in line], marker=mark, color=colour, label=label)
        for point in line:
            offset, side = ((5, -9), "left") if mark == "o" else ((-6, 3), "right")
            axis.annotate(
                point.plan,
                (point.ms, 100 * point.top1),
                offset,
                textcoords="offset points",
                fontsize=7,
                ha=side,
            )
    axis.set(xlabel=f"milliseconds per image, in batches of {BATCH}", ylabel="top-1, %", xscale="log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
