"""Content-based choice of the rung: a small model, the router, answers first, and its confidence decides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ContentRungs:
    """Rungs to choose from, and for each rung but the last a model of the probability that it suffices.

    A rung suffices for an image if its answer is right or the full plan's answer is wrong; without labels,
    if it gives the same answer as the full plan. The probability is logistic in the three measures of
    `confidence_features` of the router's scores.
    """

    rungs: tuple[str, ...]
    """Plans relative to the model's full plan, cheapest first. The first is the router."""
    weight: tuple[tuple[float, float, float], ...]
    """Weights of the three measures, for each rung but the last."""
    bias: tuple[float, ...]
    """Bias, for each rung but the last."""

    def __post_init__(self) -> None:
        if not len(self.rungs) - 1 == len(self.weight) == len(self.bias) >= 1:
            raise ValueError("weight and bias must have one entry for each of the rungs but the last")

    def choose(self, scores: FloatArray, certainty: float) -> NDArray[np.int64]:
        """Index of the cheapest rung that suffices with at least this probability: (B,).

        scores: (B, C) class probabilities from the router. Rows that are not finite, or zero throughout,
        get the last rung, and so do rows for which no other rung is certain enough.
        """
        usable = np.isfinite(scores).all(1, keepdims=True) & scores.any(1, keepdims=True)
        logits = confidence_features(scores) @ np.array(self.weight).T + np.array(self.bias)
        suffices = usable & (1 / (1 + np.exp(-logits)) >= certainty)
        return np.where(suffices.any(1), suffices.argmax(1), len(self.rungs) - 1).astype(np.int64)


def confidence_features(scores: FloatArray) -> FloatArray:
    """Log-odds of the best class, its margin over the second, and the entropy: (B, C) to (B, 3)."""
    scores = np.clip(np.nan_to_num(scores.astype(np.float64)), 1e-6, 1 - 1e-6)
    best = scores.max(1)
    second = np.partition(scores, -2, axis=1)[:, -2] if scores.shape[1] > 1 else 1 - best
    entropy = -(scores * np.log(scores)).sum(1)
    return np.stack([np.log(best / (1 - best)), best - second, entropy], axis=1)
