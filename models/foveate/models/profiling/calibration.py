"""Make what a head says of its own certainty true: temperature scaling, and how far off it was.

"On Calibration of Modern Neural Networks" (ICML 2017). An exit rule that compares a confidence with a
threshold means the same after every head only when each head's confidences are calibrated.
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

SHARPEST, SOFTEST = 0.05, 20.0
"""Bounds of a temperature; a head that is never wrong on the calibration set would want 0."""
HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What calibration did to one head."""

    temperature: float
    top1: float
    ece_before: float
    ece_after: float


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, section 2, equation 3: the mean gap between confidence and accuracy.

    probabilities: (N, C); labels: (N,) int64. Bins are of equal width and closed above.
    """
    confidence, named = probabilities.double().max(dim=1)
    right = (named == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=place.device).index_add(0, place, confidence - right)
    return float(gap.abs().sum() / len(labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes softmax(logits / T) likeliest (section 4.2): logits (N, C), labels (N,).

    The negative log-likelihood is convex in 1 / T, and its slope is the mean of what softmax expects of
    the logits less the logit of the label: bisection finds where that is zero.
    """
    scores = logits.double()
    scores = scores - scores.amax(dim=1, keepdim=True)
    own = scores.gather(1, labels.unsqueeze(1)).mean()
    low, high = 1 / SOFTEST, 1 / SHARPEST
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        expected = ((scores * middle).softmax(dim=1) * scores).sum(dim=1).mean()
        low, high = (low, middle) if expected > own else (middle, high)
    return 1 / math.sqrt(low * high)


@torch.inference_mode()
def answers(model: ElasticViT, images: Tensor, reducer: Reducer) -> dict[int, Tensor]:
    """What every exit head and the final classifier say of the same pictures: float32 logits (B, C) by
    the number of blocks before them. images: (B, 3, S, S), normalised."""
    tokens, found = model.embed(images), {}
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        if str(index + 1) in model.exit_heads:
            found[index + 1] = model.exit_heads[str(index + 1)](tokens).float()
    found[len(model.blocks)] = model.classify(tokens).float()
    return found


def calibrate(model: ElasticViT, said: Mapping[int, Tensor], labels: Tensor) -> dict[int, Calibrated]:
    """Set the temperature of each exit head from what it `said` of labelled pictures before.

    said: logits (N, C) as `answers` gives them, under the temperatures the heads have now; labels: (N,).
    Returns what changed, by the number of blocks before the head.
    """
    changed = {}
    for after, head in model.exit_heads.items():
        logits, own = said[int(after)], cast("ExitHead", head).temperature
        raw = logits * own
        own.fill_(fit_temperature(raw, labels))
        changed[int(after)] = Calibrated(
            temperature=float(own),
            top1=float((logits.argmax(dim=1) == labels).double().mean()),
            ece_before=ece(logits.softmax(dim=1), labels),
            ece_after=ece((raw / own).softmax(dim=1), labels),
        )
    return changed
