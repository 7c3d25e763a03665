"""Measure the ladder of a model of any task again: accuracy and latency of each rung in the same run."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.gateway.cli.profile import decoder
from foveate.models.profiling import dataset
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.evaluation import Evaluator, evaluator_for
from foveate.models.profiling.timing import mean_batch_seconds
from foveate.models.runners.base import ModelRunner
from foveate.models.zoo.heldout import heldout, heldout_clips


@dataclass(frozen=True, slots=True)
class RungFigures:
    """One rung."""

    plan: str
    accuracy: float
    """Top-1 or mIoU on the held-out images or clips."""
    gflops: float
    ms: float
    """Milliseconds per item in batches, the median over rounds."""
    speedup: float
    """Over full, as the median of the ratios within a round."""


def measure(runner: ModelRunner, rounds: int, batch: int, limit: int) -> list[RungFigures]:
    """All rungs, the slowest first. `limit` is the maximum number of held-out items; 0 means all."""
    items = (
        dataset.shipped_videos(heldout_clips()) if runner.card.frames else dataset.shipped_scenes(heldout())
    )
    decoded = DecodedDataset(
        items.subset(range(min(limit or len(items), len(items)))), decoder(runner.card, 10**8), _quiet
    )
    plans = {rung.plan.relative_to(runner.full): rung.plan for rung in runner.card.ladder}
    evaluator, quality = evaluator_for(runner, decoded), {}
    for name in ("full", *(name for name in plans if name != "full")):  # the evaluator compares with full
        quality[name] = accuracy(runner, evaluator, decoded, plans[name])
    times: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(len(plans)).tolist()
        batches = decoded.at([(number * 2 * batch + i) % len(decoded) for i in range(2 * batch)])
        for name in (list(plans)[index] for index in order):
            times[name].append(mean_batch_seconds(runner, plans[name], batches, batch))
    rungs = [
        RungFigures(
            name,
            *quality[name],
            1e3 * statistics.median(times[name]) / batch,
            statistics.median(a / b for a, b in zip(times["full"], times[name], strict=True)),
        )
        for name in plans
    ]
    return sorted(rungs, key=lambda rung: -rung.ms)


def accuracy(
    runner: ModelRunner, evaluator: Evaluator, decoded: DecodedDataset, plan: Plan
) -> tuple[float, float]:
    """Accuracy and mean GFLOPs of a plan."""
    gflops: list[float] = []
    for chunk in decoded.chunks(runner.max_batch):
        results = runner.run(runner.stack(chunk, plan), plan)
        evaluator.update(results)
        gflops += [result.gflops for result in results if isinstance(result, Result)]
    agreement, correct = evaluator.result()
    return (agreement if correct is None else correct), statistics.fmean(gflops)


def span(rungs: Sequence[RungFigures]) -> float:
    """The speed-up of the fastest rung over full."""
    return max(rung.speedup for rung in rungs)


def at_one_point(rungs: Sequence[RungFigures]) -> RungFigures:
    """The fastest rung within a point of the accuracy of full."""
    full = next(rung for rung in rungs if rung.plan == "full")
    return max((r for r in rungs if r.accuracy >= full.accuracy - 0.01), key=lambda rung: rung.speedup)


def draw(panels: Mapping[str, Sequence[RungFigures]], path: Path) -> None:
    """Write a plot of accuracy over milliseconds, one panel per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axis, (title, rungs) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        points = sorted((rung.ms, rung.accuracy) for rung in rungs)
        axis.plot(*zip(*points, strict=True), "o-", color="#0072B2")
        for rung in rungs:
            axis.annotate(
                rung.plan, (rung.ms, rung.accuracy), textcoords="offset points", xytext=(5, -9), fontsize=6
            )
        axis.set_title(title)
        axis.set_xlabel("milliseconds per item, in batches")
        axis.set_ylabel("accuracy")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _quiet(done: int, total: int) -> None:
    pass
