"""Accuracy, GFLOPs and time of exits, heads, stitches and sizes of the shipped models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from foveate.core.plan import Plan
from foveate.models.profiling.calibration import exit_logits, expected_calibration_error
from foveate.models.reduction import create
from foveate.models.reduction.ats import padding_waste
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import TrunkOutput
from foveate.models.zoo.heldout import heldout
from loadtests.elastic.chart import measured
from loadtests.elastic.timing import interleaved, ratio

CHUNK = 40
AXES = (
    "exit:0.95", "exit:0.9", "exit:0.8", "exit:entropy:0.1", "exit:patience:1", "exit:patience:2",
    "evit:0.5/exit:0.9", "depth:10", "depth:8", "depth:6", "heads:2", "heads:1",
    "stitch:3", "stitch:6", "stitch:9", "vit-xs@224/stitch:2", "vit-xs@224/stitch:4", "vit-xs@224/stitch:6",
    "vit-t@160", "vit-t@112", "vit-xs@224", "vit-xs@160", "vit-xs@112",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AxisPoint:
    """One plan along an axis."""

    plan: str
    top1: float
    gflops: float
    speedup: float


def measure_axes(runner: TorchRunner, rounds: int) -> list[AxisPoint]:
    """Each axis at several settings, in the precision of the runner; full is the first point."""
    plans = {"full": runner.full, **{text: Plan.parse(text, runner.full) for text in AXES}}
    pixels = list(heldout().pixels(runner.full.image_size))
    batch = runner.stack([pixels[i] for i in range(0, len(pixels), len(pixels) // 8)][:8], runner.full)
    seconds = interleaved(runner, plans, batch, rounds)
    points = []
    for text in plans:
        point = measured(runner, text, text)
        points.append(AxisPoint(text, point.top1, point.gflops, ratio(seconds["full"], seconds[text])))
    return points


@torch.inference_mode()
def calibration_errors(runner: TorchRunner) -> dict[int, tuple[float, float]]:
    """Top-1 and expected calibration error of each head on the held-out scenes, by block; the final head is
    last."""
    scenes, model = heldout(), runner.models[runner.full.variant]
    pixels = list(scenes.pixels(runner.full.image_size))
    logits_of: dict[int, list[torch.Tensor]] = {}
    for first in range(0, len(pixels), CHUNK):
        batch = runner.stack(pixels[first : first + CHUNK], runner.full)
        images = runner.preprocess(batch, runner.full.image_size)
        for after, logits in exit_logits(model, images, create("none", model)).items():
            logits_of.setdefault(after, []).append(logits.cpu())
    labels = torch.from_numpy(np.asarray(scenes.targets))
    errors = {}
    for after, parts in logits_of.items():
        logits = torch.cat(parts)
        top1 = float((logits.argmax(1) == labels).float().mean())
        errors[after] = (top1, expected_calibration_error(logits.softmax(1), labels))
    return errors


@torch.inference_mode()
def padding_shares(runner: TorchRunner, specs: Sequence[str], batch_size: int = 8) -> dict[str, float]:
    """Share of token slots that hold padding with ATS, by reducer, on 160 held-out scenes."""
    padding = {}
    pixels = list(heldout().pixels(runner.full.image_size))[:160]
    for spec in specs:
        plan = Plan.parse(spec, runner.full)
        model, resolved = runner.models[plan.variant], runner.resolve(plan)
        shares = []
        for first in range(0, len(pixels), batch_size):
            images = runner.preprocess(
                runner.stack(pixels[first : first + batch_size], plan), plan.image_size
            )
            out: TrunkOutput = model(images, resolved)
            if out.after is not None:
                shares.append(padding_waste(out.after))
        padding[spec] = float(np.mean(shares))
    return padding
