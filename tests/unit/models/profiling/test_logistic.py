"""Logistic regression on the router's confidence: what it learns, calibration, and extreme inputs."""

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate.core.content import FloatArray, confidence_features
from foveate.models.profiling.logistic import fit, logistic_regression


def random_scores(count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Probabilities of four classes (N, 4), and the margin of the best over the second (N,)."""
    scores = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=count)
    second, best = np.sort(scores, axis=1)[:, -2:].T
    return scores, best - second


def test_learns_that_confident_answers_suffice() -> None:
    scores, margin = random_scores(400, 0)
    rungs = fit(("a", "b", "full"), scores, np.stack([margin > 0.6, margin > 0.2], axis=1))
    assert rungs.rungs == ("a", "b", "full")
    new, margin = random_scores(400, 1)
    choice = rungs.choose(new, 0.5)
    expected = np.where(margin > 0.6, 0, np.where(margin > 0.2, 1, 2))
    assert (choice == expected).mean() > 0.97
    certain = rungs.choose(new, 0.99)
    assert (margin[certain == 0] > 0.6).all()
    assert (certain == 0).sum() > 40


def test_probabilities_fitted_to_noisy_labels_are_calibrated() -> None:
    """On new images, rungs chosen with a certainty suffice about that often."""

    def suffices(margin: FloatArray, seed: int) -> NDArray[np.bool_]:
        return np.random.default_rng(seed).random(len(margin)) < 1 / (1 + np.exp(4 - 10 * margin))

    scores, margin = random_scores(4000, 2)
    rungs = fit(("a", "full"), scores, suffices(margin, 3)[:, None])
    new, margin = random_scores(20000, 4)
    truth = suffices(margin, 5)
    probability = 1 / (1 + np.exp(-(confidence_features(new) @ np.array(rungs.weight[0]) + rungs.bias[0])))
    for low in (0.1, 0.3, 0.5, 0.7, 0.9):
        in_bin = (probability >= low) & (probability < low + 0.1)
        assert in_bin.sum() > 200
        assert truth[in_bin].mean() == pytest.approx(low + 0.05, abs=0.06)
    for certainty in (0.8, 0.95):
        trusted = rungs.choose(new, certainty) == 0
        assert 0.1 < trusted.mean() < 1
        assert truth[trusted].mean() > certainty
    assert truth.mean() < 0.8


def test_the_fit_does_not_depend_on_the_order_of_images() -> None:
    scores, margin = random_scores(300, 6)
    suffices = (margin > 0.4)[:, None]
    forward_fit = fit(("a", "full"), scores, suffices)
    assert fit(("a", "full"), scores, suffices) == forward_fit
    reversed_fit = fit(("a", "full"), scores[::-1], suffices[::-1])
    assert reversed_fit.weight[0] == pytest.approx(forward_fit.weight[0], rel=1e-5)
    assert reversed_fit.bias == pytest.approx(forward_fit.bias, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_rungs_that_always_or_never_suffice_get_finite_weights(count: int) -> None:
    scores, _ = random_scores(count, 7)
    never, always = np.zeros(count, bool), np.ones(count, bool)
    rungs = fit(("a", "b", "full"), scores, np.stack([never, always], axis=1))
    assert np.isfinite(rungs.weight).all()
    assert np.isfinite(rungs.bias).all()
    assert rungs.choose(scores, 0.5).tolist() == [1] * count


def test_fits_scores_of_exactly_0_and_1() -> None:
    scores = np.eye(3)[np.arange(60) % 3]
    unsure = np.full((60, 3), 1 / 3)
    suffices = np.repeat([True, False], 60)[:, None]
    rungs = fit(("a", "full"), np.concatenate([scores, unsure]), suffices)
    assert np.isfinite([*rungs.weight[0], *rungs.bias]).all()
    assert rungs.choose(np.stack([scores[0], unsure[0]]), 0.9).tolist() == [0, 1]


def test_a_larger_penalty_gives_smaller_weights() -> None:
    scores, margin = random_scores(300, 8)
    suffices = (margin > 0.4)[:, None]
    loose, tight = (fit(("a", "full"), scores, suffices, strength) for strength in (1e-2, 10.0))
    assert np.linalg.norm(tight.weight) < np.linalg.norm(loose.weight) / 2


def test_the_solution_has_no_gradient() -> None:
    generator = np.random.default_rng(10)
    features, target = generator.normal(size=(500, 3)), (generator.random(500) < 0.4).astype(float)
    solution = logistic_regression(features, target, 0.1)
    predicted = 1 / (1 + np.exp(-(features @ solution[:3] + solution[3])))
    assert features.T @ (predicted - target) + 0.1 * solution[:3] == pytest.approx(np.zeros(3), abs=1e-5)
    assert predicted.mean() == pytest.approx(target.mean(), abs=1e-6)
