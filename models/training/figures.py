"""Figures for the documentation: training curves, and the patches that each plan keeps."""

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import Checkpoint
from training.questions import KINDS
from training.scenes import draw

matplotlib.use("Agg")

Rows = list[dict[str, float]]
"""The rows of a training log."""
PLANS = ("full", "evit:0.7", "evit:0.5", "evit:0.3")


def draw_curve(log: Rows, path: Path) -> None:
    """Plot loss and accuracy over the steps of a run, from the rows of its log."""
    from matplotlib import pyplot as plt

    figure, left = plt.subplots(figsize=(7, 3.6), layout="constrained")
    left.plot([r["step"] for r in log], [r["loss"] for r in log], color="0.45", label="training loss")
    left.set(xlabel="step of 64 scenes", ylabel="training loss", ylim=(0, None))
    right = left.twinx()
    rows = [r for r in log if "top1_keep_1.0" in r]
    for key, name in (("top1_keep_1.0", "top-1 at full"), ("top1_keep_0.5", "top-1 at evit:0.5")):
        right.plot([r["step"] for r in rows], [100 * r[key] for r in rows], marker=".", label=name)
    right.set(ylabel="top-1, %", ylim=(0, 103))
    right.legend(loc="center right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_chat_curve(log: Rows, blind: Rows, path: Path) -> None:
    """Plot the exact match of each kind of question over the steps of a run, from the rows of its log.

    blind: the rows of the run without pictures. Only their mean is drawn.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    rows = [row for row in log if "mean" in row]
    for kind in KINDS:
        axes.plot([r["step"] for r in rows], [100 * r[kind] for r in rows], linewidth=1, label=kind)
    for name, part, style in (("mean", rows, "-"), ("mean, without pictures", blind, "--")):
        points = [(r["step"], 100 * r["mean"]) for r in part if "mean" in r]
        axes.plot(*zip(*points, strict=True), style, color="black", linewidth=2, label=name)
    axes.set(xlabel="step of 32 pictures with eight questions each", ylabel="exact match, %", ylim=(0, 100))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_kept_patches(checkpoint: Checkpoint, path: Path, scenes: tuple[int, ...] = (38, 87)) -> None:
    """Scenes under plans of falling cost; patches that a plan does not keep are pale."""
    from matplotlib import pyplot as plt

    runner = TorchRunner(checkpoint, "fp32")
    plans = [runner.card.plan(text) for text in PLANS]
    figure, axes = plt.subplots(
        len(scenes), len(plans), figsize=(2.1 * len(plans), 2.45 * len(scenes)), layout="constrained"
    )
    for row, scene in zip(axes, scenes, strict=True):
        pixels = draw("examples", scene).image
        for axis, plan in zip(row, plans, strict=True):
            batch = runner.stack([pixels], plan)
            (explanation,) = runner.explain([pixels], plan)
            (result,) = runner.run(batch, plan)
            if isinstance(result, Exception):
                raise result
            best = int(result.scores.argmax())
            axis.imshow(faded(pixels, np.array(explanation.patch_states) == "kept"))
            axis.set_title(f"{plan.parts}: {result.gflops:.2f} GFLOPs", fontsize=9)
            axis.set_xlabel(f"{runner.card.labels[best]}, {result.scores[best]:.0%}", fontsize=9)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def faded(pixels: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (S, S, 3) with the patches pale that are not `kept` (P,)."""
    side = round(len(kept) ** 0.5)
    patch = len(pixels) // side
    mask = np.kron(kept.reshape(side, side), np.ones((patch, patch), bool))[..., None]
    pale = 205 + pixels.mean(axis=2, keepdims=True) * 0.15
    return np.where(mask, pixels, pale).astype(np.uint8)
