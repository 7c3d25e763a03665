"""All reducers at equal GFLOPs, for networks with and without training for budgets.

Every comparison has the baselines: random pruning and pooling as reducers of their own, and for each reducer
random tokens at its own token counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from foveate.core.profile import BASELINE_REDUCERS
from foveate.models.loading.precision import copy_of
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ResolvedPlan, TrunkOutput
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.zoo.heldout import heldout
from loadtests.elastic.budgets import ARGUMENTS, closest
from loadtests.elastic.random_tokens import RandomTokens

SHARES = (0.8, 0.6, 0.45, 0.3)
"""Compared GFLOPs, as shares of the GFLOPs of full."""
RANDOM_SHARE = 0.6
"""The share at which each reducer is compared with random tokens at its own token counts."""
CHUNK = 16


@dataclass(frozen=True, slots=True)
class ReducerPoint:
    """One reducer on one network at one budget."""

    reducer: str
    spec: str
    gflops: float
    top1: float
    random_top1: float | None = None
    """With random tokens at the same token counts; None if not measured."""


def measure_reducers(checkpoint: Checkpoint) -> Iterator[ReducerPoint]:
    """Each reducer that the network can run, at each budget; GFLOPs are the mean over the images."""
    runner = TorchRunner(copy_of(checkpoint), "fp32")
    side, full = runner.full.image_size, runner.card.ladder[-1].gflops
    model = runner.models[runner.full.variant]
    yield measured(runner, "full", "full")
    for name in ARGUMENTS:
        specs = {closest(model, name, share * full, side): share for share in SHARES}
        for spec, share in specs.items():
            if spec is not None:
                point = measured(runner, name, spec)
                compared = share == RANDOM_SHARE and name not in BASELINE_REDUCERS
                yield replace(point, random_top1=random_top1(runner, spec)) if compared else point


def measured(runner: TorchRunner, reducer: str, spec: str) -> ReducerPoint:
    """Top-1 and mean GFLOPs on the held-out scenes."""
    scenes, plan = heldout(), runner.card.plan(spec)
    pixels = list(scenes.pixels(plan.image_size))
    correct, gflops = 0, 0.0
    for first in range(0, len(pixels), CHUNK):
        results = runner.run(runner.stack(pixels[first : first + CHUNK], plan), plan)
        for result, target in zip(results, scenes.targets[first : first + CHUNK], strict=True):
            if not isinstance(result, Exception):
                correct += int(result.scores.argmax() == target)
                gflops += result.gflops
    return ReducerPoint(reducer, spec, gflops / len(pixels), correct / len(pixels))


@torch.inference_mode()
def random_top1(runner: TorchRunner, spec: str) -> float:
    """Top-1 on the held-out scenes, with random tokens at the token counts of this reducer."""
    scenes, plan = heldout(), runner.card.plan(spec)
    model, resolved = runner.models[plan.variant], runner.resolve(plan)
    pixels, correct = list(scenes.pixels(plan.image_size)), 0
    random_plan = ResolvedPlan(RandomTokens(resolved.reducer, model.config), resolved.depth)
    for first in range(0, len(pixels), CHUNK):
        images = runner.preprocess(runner.stack(pixels[first : first + CHUNK], plan), plan.image_size)
        out: TrunkOutput = model(images, random_plan)
        targets = torch.from_numpy(np.asarray(scenes.targets[first : first + CHUNK]))
        correct += int((out.logits.argmax(1).cpu() == targets).sum())
    return correct / len(pixels)


def points_above(points: Sequence[ReducerPoint], name: str, other: str, share: float) -> float:
    """Top-1 of one reducer minus that of another, in points, at this share of the GFLOPs of full."""
    full = next(point.gflops for point in points if point.reducer == "full")
    first, second = (
        min((p for p in points if p.reducer == reducer), key=lambda p: abs(p.gflops - share * full)).top1
        for reducer in (name, other)
    )
    return round(100 * (first - second), 2)


def draw(panels: dict[str, list[ReducerPoint]], path: Path) -> None:
    """Write a plot of top-1 over GFLOPs: one panel per network, one line per reducer."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.6), sharey=True, squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        full = next(point for point in points if point.reducer == "full")
        axis.plot(full.gflops, full.top1, "k*", markersize=12, label="full")
        colours = plt.get_cmap("tab10")(np.arange(len(ARGUMENTS)))
        for name, colour, marker in zip(ARGUMENTS, colours, "osv^DPXh*d", strict=True):
            line = sorted((p.gflops, p.top1) for p in points if p.reducer == name)
            style = {"color": "black", "linestyle": "--"} if name in BASELINE_REDUCERS else {"color": colour}
            if line:
                axis.plot(*zip(*line, strict=True), marker=marker, label=name, linewidth=1.2, **style)
        axis.set(title=title, xlabel="GFLOPs per image")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("top-1 on the held-out scenes")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
