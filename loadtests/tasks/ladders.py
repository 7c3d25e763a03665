"""The ladder of any task's model, measured again: accuracy and latency of every rung in the same run."""

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
from foveate.models.profiling.evaluation import Evaluator
from foveate.models.profiling.profile import evaluator_for
from foveate.models.profiling.timing import mean_batch_seconds
from foveate.models.runners.base import Loaded
from foveate.models.zoo.heldout import heldout, heldout_clips


@dataclass(frozen=True, slots=True)
class Step:
    """One rung."""

    plan: str
    accuracy: float
    """Top-1 or mIoU on the held-out pictures or clips."""
    gflops: float
    ms: float
    """Milliseconds an item in batches, the median over rounds."""
    speedup: float
    """Over full, as the median of ratios inside a round."""


def measure(runner: Loaded, rounds: int, batch: int, limit: int) -> list[Step]:
    """Every rung, the slowest first. limit: of held-out items, in their order; 0: all."""
    shown = (
        dataset.shipped_videos(heldout_clips()) if runner.card.frames else dataset.shipped_scenes(heldout())
    )
    album = DecodedDataset(
        shown.subset(range(min(limit or len(shown), len(shown)))), decoder(runner.card, 10**8), _quiet
    )
    plans = {rung.plan.relative_to(runner.full): rung.plan for rung in runner.card.ladder}
    judge, found = evaluator_for(runner, album), {}
    for name in ("full", *(name for name in plans if name != "full")):  # to full the others are compared
        found[name] = accuracy(runner, judge, album, plans[name])
    times: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(len(plans)).tolist()
        items = album.at([(number * 2 * batch + i) % len(album) for i in range(2 * batch)])
        for name in (list(plans)[place] for place in order):
            times[name].append(mean_batch_seconds(runner, plans[name], items, batch))
    steps = [
        Step(
            name,
            *found[name],
            1e3 * statistics.median(times[name]) / batch,
            statistics.median(a / b for a, b in zip(times["full"], times[name], strict=True)),
        )
        for name in plans
    ]
    return sorted(steps, key=lambda step: -step.ms)


def accuracy(runner: Loaded, judge: Evaluator, album: DecodedDataset, plan: Plan) -> tuple[float, float]:
    """Accuracy and mean GFLOPs under a plan."""
    spent: list[float] = []
    for chunk in album.chunks(runner.max_batch):
        results = runner.run(runner.stack(chunk, plan), plan)
        judge.update(results)
        spent += [result.gflops for result in results if isinstance(result, Result)]
    kept, right = judge.result()
    return (kept if right is None else right), statistics.fmean(spent)


def span(steps: Sequence[Step]) -> float:
    """How many times faster than full the fastest rung is."""
    return max(step.speedup for step in steps)


def at_one_point(steps: Sequence[Step]) -> Step:
    """The fastest rung within a point of full's accuracy."""
    full = next(step for step in steps if step.plan == "full")
    return max((s for s in steps if s.accuracy >= full.accuracy - 0.01), key=lambda step: step.speedup)


def draw(panels: Mapping[str, Sequence[Step]], path: Path) -> None:
    """Accuracy over milliseconds, a panel a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axis, (title, steps) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        points = sorted((step.ms, step.accuracy) for step in steps)
        axis.plot(*zip(*points, strict=True), "o-", color="#0072B2")
        for step in steps:
            axis.annotate(
                step.plan, (step.ms, step.accuracy), textcoords="offset points", xytext=(5, -9), fontsize=6
            )
        axis.set_title(title)
        axis.set_xlabel("milliseconds an item, in batches")
        axis.set_ylabel("accuracy")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _quiet(done: int, total: int) -> None:
    pass
