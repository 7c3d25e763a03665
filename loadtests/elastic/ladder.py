"""The default ladder of a model, measured again: latency beside top-1, and what content adds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.content import CONTENT_BATCHES
from foveate.core.plan import Plan
from foveate.models.content_profile import CERTAINTIES
from foveate.models.heldout import heldout
from foveate.models.runner import TorchRunner
from foveate.models.timing import seconds_each

BATCH = 8
PICTURES = 96


@dataclass(frozen=True, slots=True)
class Step:
    """One plan, on pictures that the content rungs have not learnt from."""

    plan: str
    top1: float
    gflops: float
    ms: float
    """Milliseconds a picture, the median over rounds: fixed rungs in batches of 8, and content with as
    many pictures at a time as the engine takes where so many wait."""
    speedup: float
    """Over full, as the median of ratios inside a round."""
    ms_eight: float
    """The same with no more than 8 at a time."""


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
    plans = {rung.plan.beside(full): rung.plan for rung in runner.card.ladder}
    plans |= {f"content:{c}": runner.card.plan(f"content:{c}") for c in CERTAINTIES}
    seconds = _seconds(runner, plans, pixels, rounds)
    steps = []
    for name, plan in plans.items():
        right, gflops = _answers(runner, plan, pixels, targets)
        ms, ms_eight = (1e3 * statistics.median(seconds[key]) / BATCH for key in (name, f"{name} by eight"))
        ratios = [a / b for a, b in zip(seconds["full"], seconds[name], strict=True)]
        steps.append(Step(name, right, gflops, ms, statistics.median(ratios), ms_eight))
    return sorted(steps, key=lambda step: step.ms)


def _seconds(
    runner: TorchRunner, plans: Mapping[str, Plan], pixels: Sequence[NDArray[np.uint8]], rounds: int
) -> dict[str, list[float]]:
    """Mean seconds of 8 pictures, round by round, over the same pictures for every plan."""
    seconds: dict[str, list[float]] = {f"{name}{how}": [] for name in plans for how in ("", " by eight")}
    for number in range(rounds + 1):
        drawn = np.random.default_rng(number).permutation(len(pixels))[:PICTURES]
        chosen = [pixels[index] for index in drawn]
        for name, plan in plans.items():
            by_eight = together = seconds_each(runner, plan, chosen, BATCH)
            if plan.content is not None:
                waiting = BATCH * CONTENT_BATCHES
                together = seconds_each(runner, plan, chosen, waiting) / CONTENT_BATCHES
            seconds[name].append(together)
            seconds[f"{name} by eight"].append(by_eight)
    return {name: found[1:] for name, found in seconds.items()}  # the first round warmed up


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


def best_fixed(steps: Sequence[Step], ms: float) -> float:
    """Top-1 of the best rung that is the same for every picture and takes no longer."""
    return max((s.top1 for s in steps if "content" not in s.plan and s.ms <= ms), default=0.0)


def mixed(steps: Sequence[Step], ms: float) -> float:
    """Top-1 of the best random assignment of two fixed rungs with this mean latency."""
    fixed = [s for s in steps if "content" not in s.plan]
    best = best_fixed(steps, ms)
    for cheap in fixed:
        for dear in fixed:
            if cheap.ms <= ms < dear.ms:
                share = (ms - cheap.ms) / (dear.ms - cheap.ms)
                best = max(best, cheap.top1 + share * (dear.top1 - cheap.top1))
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
            where = (4, -11) if mark == "o" else (-4, 6)
            axis.annotate(
                step.plan, (step.ms, 100 * step.top1), where, textcoords="offset points", fontsize=7
            )
    axis.set(xlabel="milliseconds a picture", ylabel="top-1, %", xscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower right")
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=110)
    plt.close(figure)
