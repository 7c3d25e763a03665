"""The latency model: seeds, refits, outliers, a machine that slows down."""

import random
from dataclasses import replace

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.latency import MAX_EXTRA_PLANS, RATIO_WINDOW, LatencyModel, _TimedSize, fit_line

FULL = Plan("m", 32)
CHEAP = replace(FULL, reducer="evit:0.3")
LADDER = (
    Rung(CHEAP, 1.0, 5, 0.8, {1: 0.003, 4: 0.006, 8: 0.01}),
    Rung(FULL, 4.0, 9, 1.0, {1: 0.01, 4: 0.034, 8: 0.066}),
)


def test_predictions_start_from_the_profile() -> None:
    model = LatencyModel(LADDER)
    for rung in LADDER:
        assert rung.latency_s is not None
        for size, seconds in rung.latency_s.items():
            assert model.predict(rung.plan, size) == pytest.approx(seconds, rel=0.03)


def test_an_unmeasured_rung_costs_its_share_of_the_gflops() -> None:
    model = LatencyModel((replace(LADDER[0], latency_s=None), LADDER[1]))
    assert model.predict(CHEAP, 4) == pytest.approx(0.034 / 4, rel=0.03)


def test_an_unknown_plan_costs_as_much_as_full_until_a_few_batches_have_run() -> None:
    model, unknown = LatencyModel(LADDER), replace(FULL, reducer="tome:3")
    assert model.predict(unknown, 8) == pytest.approx(0.066, rel=0.03)
    for size in (1, 8, 4, 8, 1, 8):
        model.observe(unknown, size, 0.002 + 0.001 * size)
        model.observe(FULL, 8, 0.066)
        model.observe(FULL, 8, 0.066)
    assert model.predict(unknown, 8) == pytest.approx(0.01, rel=0.2)
    assert model.predict(FULL, 8) == pytest.approx(0.066, rel=0.05)


def test_an_unknown_plan_of_larger_images_costs_more_than_full() -> None:
    model = LatencyModel(LADDER)
    larger, smaller = (replace(FULL, image_size=side) for side in (64, 16))
    assert model.predict(larger, 8) == pytest.approx(4 * 0.066, rel=0.03)
    assert model.predict(smaller, 8) == pytest.approx(0.066, rel=0.03)


def test_a_slowdown_is_known_after_a_few_batches_of_any_plan() -> None:
    model = LatencyModel(LADDER)
    for _ in range(RATIO_WINDOW // 2 + 1):
        model.observe(CHEAP, 8, 2 * 0.01)
    assert model.predict(FULL, 8) == pytest.approx(2 * 0.066, rel=0.1)
    for _ in range(RATIO_WINDOW):
        model.observe(FULL, 8, 0.066)
    assert model.predict(CHEAP, 8) == pytest.approx(0.01, rel=0.2)


def test_outliers_hardly_change_predictions() -> None:
    model, draw = LatencyModel(LADDER), random.Random(0)
    for number in range(300):
        stalled = 50 if number % 10 == 3 else 1
        model.observe(FULL, 8, stalled * 0.066 * draw.uniform(0.95, 1.05))
    assert model.predict(FULL, 8) == pytest.approx(0.066, rel=0.12)
    assert model.predict(FULL, 1) == pytest.approx(0.01, rel=0.15)


def test_a_plan_with_a_wrong_profile_is_corrected_without_changing_others() -> None:
    model = LatencyModel(LADDER)
    for _ in range(200):
        for size, seconds in ((1, 0.005), (8, 0.02)):
            model.observe(CHEAP, size, seconds)
        for size, seconds in ((1, 0.01), (8, 0.066)) * 2:
            model.observe(FULL, size, seconds)
    assert model.predict(CHEAP, 1) == pytest.approx(0.005, rel=0.15)
    assert model.predict(CHEAP, 8) == pytest.approx(0.02, rel=0.15)
    assert model.predict(FULL, 8) == pytest.approx(0.066, rel=0.05)


def test_the_safety_factor_follows_the_prediction_error() -> None:
    steady, wild, draw = LatencyModel(LADDER), LatencyModel(LADDER), random.Random(1)
    for _ in range(100):
        steady.observe(FULL, 8, 0.066)
        wild.observe(FULL, 8, 0.066 * draw.uniform(0.7, 1.3))
    assert steady.safety_factor == pytest.approx(1.05)
    assert 1.15 < wild.safety_factor <= 1.5


def test_observe_returns_the_actual_over_the_predicted_seconds() -> None:
    model = LatencyModel(LADDER)
    assert model.observe(FULL, 8, 2 * model.predict(FULL, 8)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("latency", "size"), [({1: 0.01, 8: 0.08}, 1), ({1: 0.01, 8: 0.059}, 9), ({1: 0.01, 8: 0.011}, 16)]
)
def test_the_efficient_batch_size_depends_on_the_fixed_cost(latency: dict[int, float], size: int) -> None:
    assert LatencyModel((replace(LADDER[1], latency_s=latency),)).efficient_batch_size(FULL, 16) == size


def test_the_least_recently_run_plans_are_dropped() -> None:
    model = LatencyModel(LADDER)
    for number in range(MAX_EXTRA_PLANS + 50):
        model.observe(replace(FULL, reducer=f"tome:{number}"), 1, 0.01)
    assert len(model._lines) == len(model._points) <= MAX_EXTRA_PLANS + len(LADDER)
    assert model.predict(CHEAP, 8) < model.predict(FULL, 8) / 3
    assert model.predict(FULL, 1) > 0


def test_a_model_without_gflops_has_a_latency() -> None:
    nothing = tuple(replace(rung, gflops=0.0, latency_s=None) for rung in LADDER)
    model = LatencyModel(nothing)
    assert model.predict(CHEAP, 1) == model.predict(FULL, 1) > 0


def test_a_rung_that_was_not_measured_now_is_scaled_like_one_that_was() -> None:
    times = {CHEAP: {1: 0.006, 8: 0.02}, FULL: {}}
    model = LatencyModel(LADDER, times)
    assert model.predict(CHEAP, 8) == pytest.approx(0.02, rel=0.03)
    assert model.predict(FULL, 8) == pytest.approx(2 * 0.066, rel=0.03)


def test_a_wrong_guess_for_one_size_corrects_the_guesses_for_all_sizes() -> None:
    """Otherwise batches of one, the only size observed, would seem to be the only efficient ones."""
    model = LatencyModel(tuple(replace(rung, latency_s=None) for rung in LADDER))
    before = model.efficient_batch_size(FULL, 32)
    for _ in range(20):
        model.observe(FULL, 1, 0.0004)
    assert model.predict(FULL, 1) == pytest.approx(0.0004, rel=0.1)
    assert model.efficient_batch_size(FULL, 32) >= before > 8


def test_a_stalled_first_batch_of_a_plan_is_corrected() -> None:
    model = LatencyModel(LADDER)
    pinned = Plan("m", 32, reducer="tome:3")
    model.observe(pinned, 1, 10.0)
    for _ in range(30):
        model.observe(pinned, 1, 0.01)
    assert model.predict(pinned, 1) < 0.02
    assert model.slowdown == pytest.approx(1, rel=0.3), (
        "the first batch of a plan says nothing about the machine"
    )


def test_a_stalled_first_large_batch_does_not_prevent_others() -> None:
    model = LatencyModel((Rung(FULL, 0.0, 1, 1.0),))
    for _ in range(20):
        model.observe(FULL, 1, 0.0002)
    for size in (8, 6, 16):
        model.observe(FULL, size, 0.004)
        assert model.efficient_batch_size(FULL, 32) > 8


def test_decay_moves_the_slowdown_back_to_one() -> None:
    model = LatencyModel(LADDER)
    for _ in range(RATIO_WINDOW):
        model.observe(FULL, 8, 3 * 0.066)
    version = model.version
    assert model.slowdown == pytest.approx(3, rel=0.1)
    for _ in range(RATIO_WINDOW // 2 + 1):
        model.decay()
    assert model.slowdown == 1
    assert model.version > version


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ({1: 3.0, 2: 4.0, 5: 7.0}, (2.0, 1.0)),
        ({2: 3.0}, (0.0, 1.5)),
        ({1: 1.0, 2: 3.0}, (0.0, 1.1538)),  # the best line with an intercept of at least 0
        ({1: 2.0, 2: 1.0}, (1.2, 0.0)),  # the best line with a slope of at least 0
    ],
)
def test_lines_have_no_negative_coefficients(seconds: dict[int, float], line: tuple[float, float]) -> None:
    fit = fit_line({size: _TimedSize(s, 1.0, s) for size, s in seconds.items()})
    assert (fit.fixed_s, fit.item_s) == pytest.approx(line, abs=1e-3)


def test_one_more_item_costs_the_slope_times_the_slowdown() -> None:
    model = LatencyModel(LADDER)
    before = model.item_s(FULL)
    assert before == pytest.approx(0.008, rel=0.03)
    assert model.predict(FULL, 5) - model.predict(FULL, 4) == pytest.approx(before)
    for _ in range(RATIO_WINDOW):
        model.observe(FULL, 8, 2 * 0.066)
    assert model.item_s(FULL) == pytest.approx(2 * before, rel=0.1)
