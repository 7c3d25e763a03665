"""Logistic regression that predicts from the router's scores whether a rung suffices for an image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.core.content import ContentRungs, FloatArray, confidence_features

MAX_ITERATIONS = 50
MAX_STEP = 10.0
"""Largest change of a weight in one step: keeps Newton's method stable far from the solution."""
TOLERANCE = 1e-9


def fit(
    rungs: Sequence[str], scores: FloatArray, suffices: NDArray[np.bool_], strength: float = 1e-2
) -> ContentRungs:
    """Fit the probability that each rung suffices, given the router's scores.

    scores: (N, C) class probabilities from the router. suffices: (N, R - 1), whether each rung but the last
    sufficed for each image. strength: weight of the L2 penalty, which makes the solution unique.
    """
    features = confidence_features(scores)
    weights, biases = [], []
    for target in suffices.T:
        solution = logistic_regression(features, target.astype(np.float64), strength)
        weights.append((float(solution[0]), float(solution[1]), float(solution[2])))
        biases.append(float(solution[3]))
    return ContentRungs(tuple(rungs), tuple(weights), tuple(biases))


def logistic_regression(features: FloatArray, target: FloatArray, strength: float) -> FloatArray:
    """Weights (3,) and then the bias, by Newton's method: (4,).

    features: (N, 3). target: (N,) of 0 and 1. strength: weight of the L2 penalty on the weights.
    """
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    penalty = strength * np.diag([1.0, 1.0, 1.0, 1e-6])
    solution: FloatArray = np.zeros(4)
    for _ in range(MAX_ITERATIONS):
        predicted = 1 / (1 + np.exp(-x @ solution))
        gradient = x.T @ (target - predicted) - penalty @ solution
        hessian = (x * (predicted * (1 - predicted))[:, None]).T @ x + penalty
        step = np.linalg.solve(hessian, gradient)
        solution = solution + step * min(1.0, MAX_STEP / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < TOLERANCE:
            break
    return solution
