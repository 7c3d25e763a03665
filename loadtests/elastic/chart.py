"""All reducers at equal GFLOPs on one chart, on a network trained for budgets and on one that was not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.models.loading.precision import copy_of
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.zoo.heldout import heldout
from loadtests.elastic.budgets import ARGUMENTS, closest

SHARES = (0.8, 0.6, 0.45, 0.3)
"""GFLOPs to compare at, as shares of full's."""
CHUNK = 16


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """One reducer on one network at one budget."""

    reducer: str
    spec: str
    gflops: float
    top1: float


def points(checkpoint: Checkpoint) -> Iterator[ChartPoint]:
    """Every reducer that the network can run, at every budget; GFLOPs are what pictures cost on average."""
    runner = TorchRunner(copy_of(checkpoint), "fp32")
    side, full = runner.full.image_size, runner.card.ladder[-1].gflops
    model = runner.models[runner.full.variant]
    yield measured(runner, "full", "full")
    for name in ARGUMENTS:
        specs = (closest(model, name, share * full, side) for share in SHARES)
        for spec in dict.fromkeys(spec for spec in specs if spec is not None):
            yield measured(runner, name, spec)


def measured(runner: TorchRunner, reducer: str, spec: str) -> ChartPoint:
    """Top-1 and mean GFLOPs on the held-out scenes."""
    scenes, plan = heldout(), runner.card.plan(spec)
    pixels = list(scenes.pixels(plan.image_size))
    right, gflops = 0, 0.0
    for first in range(0, len(pixels), CHUNK):
        results = runner.run(runner.stack(pixels[first : first + CHUNK], plan), plan)
        for result, target in zip(results, scenes.targets[first : first + CHUNK], strict=True):
            if not isinstance(result, Exception):
                right += int(result.scores.argmax() == target)
                gflops += result.gflops
    return ChartPoint(reducer, spec, gflops / len(pixels), right / len(pixels))


def draw(panels: dict[str, list[ChartPoint]], path: Path) -> None:
    """One panel a network: top-1 over GFLOPs, a line a reducer."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.6), sharey=True, squeeze=False)
    for axis, (title, found) in zip(axes[0], panels.items(), strict=True):
        full = next(point for point in found if point.reducer == "full")
        axis.plot(full.gflops, full.top1, "k*", markersize=12, label="full")
        colours = plt.get_cmap("tab10")(np.arange(len(ARGUMENTS)))
        for name, colour, marker in zip(ARGUMENTS, colours, "osv^DPXh", strict=True):
            line = sorted((p.gflops, p.top1) for p in found if p.reducer == name)
            if line:
                axis.plot(*zip(*line, strict=True), marker=marker, color=colour, label=name, linewidth=1.2)
        axis.set(title=title, xlabel="GFLOPs a picture")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("top-1 on the held-out scenes")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
