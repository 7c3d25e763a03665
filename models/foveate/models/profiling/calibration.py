"""Temperature scaling of exit heads, and the calibration error before and after.

"On Calibration of Modern Neural Networks" (ICML 2017). An exit rule compares a confidence with a
threshold. The threshold means the same after every head only if every head is calibrated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from foveate.models.heads.exits import ExitHead
from foveate.models.layers.reducer import Reducer
from foveate.models.vit.vit import ElasticViT

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of a temperature. A head that is always right on the calibration set would get 0."""
BISECTION_STEPS = 40


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """The effect of calibration on one head."""

    temperature: float
    top1: float
    ece_before: float
    """Expected calibration error, 0 to 1, at the temperature that the head had before."""
    ece_after: float


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, section 2, equation 3: the mean gap between confidence and accuracy.

    probabilities: (N, C); labels: (N,) int64. Bins have equal width and include their upper bound.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=index.device)
    gap = gap.index_add(0, index, confidence - correct)
    return float(gap.abs().sum() / len(labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that maximises the likelihood of softmax(logits / T), section 4.2.

    logits: (N, C); labels: (N,) int64. The negative log-likelihood is convex in 1 / T. Its slope is the
    mean difference between the expected logit under the softmax and the label's logit; bisection finds
    its zero.
    """
    scores = logits.double()
    scores = scores - scores.amax(dim=1, keepdim=True)
    label_score = scores.gather(1, labels.unsqueeze(1)).mean()
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(BISECTION_STEPS):
        middle = math.sqrt(low * high)
        expected = ((scores * middle).softmax(dim=1) * scores).sum(dim=1).mean()
        low, high = (low, middle) if expected > label_score else (middle, high)
    return 1 / math.sqrt(low * high)


@torch.inference_mode()
def exit_logits(model: ElasticViT, images: Tensor, reducer: Reducer) -> dict[int, Tensor]:
    """The logits of every exit head and of the final classifier, by the number of blocks before them.

    images: (B, 3, S, S), normalised. Each value is (B, C) float32.
    """
    tokens, logits = model.embed(images), {}
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        if str(index + 1) in model.exit_heads:
            logits[index + 1] = model.exit_heads[str(index + 1)](tokens).float()
    logits[len(model.blocks)] = model.classify(tokens).float()
    return logits


def calibrate(
    model: ElasticViT, head_logits: Mapping[int, Tensor], labels: Tensor
) -> dict[int, CalibrationReport]:
    """Set the temperature of each exit head from its logits on labelled images.

    head_logits: (N, C) by the number of blocks, as `exit_logits` gives them under the heads' current
    temperatures; labels: (N,) int64. Returns one report for each head, by the number of blocks before it.
    """
    reports = {}
    for after, head in model.exit_heads.items():
        logits, temperature = head_logits[int(after)], cast("ExitHead", head).temperature
        unscaled = logits * temperature
        temperature.fill_(fit_temperature(unscaled, labels))
        reports[int(after)] = CalibrationReport(
            temperature=float(temperature),
            top1=float((logits.argmax(dim=1) == labels).double().mean()),
            ece_before=expected_calibration_error(logits.softmax(dim=1), labels),
            ece_after=expected_calibration_error((unscaled / temperature).softmax(dim=1), labels),
        )
    return reports
