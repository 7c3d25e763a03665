"""Content picks the rung: a small scout answers first, and how sure it is says what else is needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ContentRungs:
    """Rungs to choose from, and for each but the last how likely it suffices, given the scout's answer.

    A rung suffices for a picture where it keeps the right answer, or full has not got it either; without
    labels, where it answers as full does. The likelihoods are logistic in three measures of how sure
    the scout is: the log-odds of its best class, its lead over the second, and the entropy.
    """

    rungs: tuple[str, ...]
    """Plans relative to the model's full plan, cheapest first; the first is the scout."""
    weight: tuple[tuple[float, float, float], ...]
    bias: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.rungs) - 1 == len(self.weight) == len(self.bias) >= 1:
            raise ValueError("every rung but the last has its weights")

    def choose(self, scores: Floats, certainty: float) -> NDArray[np.int64]:
        """Index of the cheapest rung that suffices with at least this probability: (B,).

        scores: (B, C), the scout's class probabilities. The last rung needs no probability, and takes
        the rows that say nothing: those that are not finite, or zero throughout.
        """
        told = np.isfinite(scores).all(1, keepdims=True) & scores.any(1, keepdims=True)
        logits = sureness(scores) @ np.array(self.weight).T + np.array(self.bias)
        suffices = told & (1 / (1 + np.exp(-logits)) >= certainty)
        return np.where(suffices.any(1), suffices.argmax(1), len(self.rungs) - 1).astype(np.int64)


def sureness(scores: Floats) -> Floats:
    """Log-odds of the best class, its lead over the second, and the entropy: (B, C) to (B, 3)."""
    scores = np.clip(np.nan_to_num(scores.astype(np.float64)), 1e-6, 1 - 1e-6)
    best = scores.max(1)
    second = np.partition(scores, -2, axis=1)[:, -2] if scores.shape[1] > 1 else 1 - best
    entropy = -(scores * np.log(scores)).sum(1)
    return np.stack([np.log(best / (1 - best)), best - second, entropy], axis=1)


def fit(
    rungs: Sequence[str], scores: Floats, suffices: NDArray[np.bool_], strength: float = 1e-2
) -> ContentRungs:
    """Learn from pictures what the scout's answer says about each rung.

    scores: (N, C), the scout's; suffices: (N, R - 1), whether each rung but the last did. Logistic
    regression with an L2 penalty of `strength`, by Newton's method, which has one solution.
    """
    features = sureness(scores)
    weights, biases = [], []
    for wanted in suffices.T:
        solution = _logistic(features, wanted.astype(np.float64), strength)
        weights.append((float(solution[0]), float(solution[1]), float(solution[2])))
        biases.append(float(solution[3]))
    return ContentRungs(tuple(rungs), tuple(weights), tuple(biases))


def _logistic(features: Floats, wanted: Floats, strength: float) -> Floats:
    """Weights and, last, the bias."""
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    penalty = strength * np.diag([1.0, 1.0, 1.0, 1e-6])
    solution: Floats = np.zeros(4)
    for _ in range(50):
        likely = 1 / (1 + np.exp(-x @ solution))
        slope = x.T @ (wanted - likely) - penalty @ solution
        curve = (x * (likely * (1 - likely))[:, None]).T @ x + penalty
        step = np.linalg.solve(curve, slope)
        solution = solution + step * min(1.0, 10 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return solution
