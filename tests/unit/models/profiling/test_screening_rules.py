"""Which plans few images rule out: tables of scores."""

import math
from dataclasses import replace

import numpy as np
import pytest

from foveate.models.profiling.screening_rules import (
    Trial,
    affordable,
    difference,
    dominated_plans,
    expected_seconds,
    ranked_by_hypervolume,
    stage_sizes,
)

NONE = frozenset[str]()


def trial(right: int, gflops: float, images: int = 100) -> Trial:
    """A plan that is right on the first images."""
    return Trial((1.0,) * right + (0.0,) * (images - right), gflops * images, 0.1 * images)


@pytest.mark.parametrize(
    ("plans", "images", "sizes"),
    [(24, 1040, ()), (25, 60, ()), (25, 64, (32,)), (400, 1040, (32, 128)), (400, 10**5, (32, 128, 512))],
)
def test_stages_have_four_times_as_many_images_each_up_to_a_quarter(
    plans: int, images: int, sizes: tuple[int, ...]
) -> None:
    assert stage_sizes(plans, images) == sizes


def test_few_images_on_which_two_plans_agree_do_not_make_them_equal() -> None:
    mean, error = difference(np.zeros(32))
    assert mean == 0 and error == pytest.approx(math.sqrt(2 / 34) / math.sqrt(34))
    assert difference(np.zeros(10_000))[1] < 2e-4


def test_a_plan_is_dropped_if_another_is_better_beyond_chance_for_no_more_compute() -> None:
    trials = {"full": trial(98, 1.0), "good": trial(95, 0.5), "near": trial(93, 0.5), "bad": trial(70, 0.55)}
    (drop,) = dominated_plans(trials, "screening on 100 images", NONE)
    assert (drop.plan, drop.better, drop.stage) == ("bad", "good", "screening on 100 images")
    assert drop.reason == "another plan is better for no more compute" and not drop.by_budget


def test_a_plan_is_dropped_if_another_is_as_good_for_a_quarter_less_compute() -> None:
    images = 2000
    trials = {
        "full": trial(1990, 1.0, images),
        "half": trial(1980, 0.5, images),
        "wasteful": trial(1980, 0.8, images),
        "close": trial(1980, 0.6, images),
    }
    (drop,) = dominated_plans(trials, "s", NONE)
    assert (drop.plan, drop.better) == ("wasteful", "half") and "as good for over 25% less" in drop.reason
    few = {name: trial(40, t.mean_gflops, 40) for name, t in trials.items()}
    assert dominated_plans(few, "s", NONE) == [], "forty images do not show that the plans are equal"


def test_plans_that_cannot_be_rungs_are_dropped_and_full_never_is() -> None:
    trials = {"full": trial(90, 1.0), "slow": trial(90, 1.1), "poor": trial(20, 0.1)}
    reasons = {drop.plan: drop.reason for drop in dominated_plans(trials, "s", NONE)}
    assert reasons == {"slow": "costs more than full", "poor": "keeps less than 50% of full's quality"}
    assert dominated_plans(trials, "s", frozenset({"slow", "poor"})) == [], "baselines are exempt"
    assert dominated_plans({"full": trial(50, 1.0), "better": trial(99, 0.2)}, "s", NONE) == []


def test_a_dropped_plan_beats_no_other_one() -> None:
    """Else a chain of small losses could end far below the frontier."""
    images = 4000
    names = ("a", "b", "c", "d")
    trials = {n: trial(3000 + 14 * i, 0.1 * 1.5**i, images) for i, n in enumerate(names)}
    trials["full"] = trial(4000, 1.0, images)
    kept = set(trials) - {drop.plan for drop in dominated_plans(trials, "s", NONE)}
    for name in names:
        near = [k for k in kept if trials[k].gflops <= trials[name].gflops]
        assert max(np.mean(trials[k].scores) for k in near) >= np.mean(trials[name].scores) - 0.005


def test_full_comes_first_then_plans_spread_over_the_frontier() -> None:
    trials = {
        "below": trial(80, 0.6),
        "cheap": trial(70, 0.1),
        "like cheap": trial(71, 0.11),
        "middle": trial(90, 0.5),
        "far": trial(60, 0.7),
        "full": trial(98, 1.0),
    }
    assert ranked_by_hypervolume(trials) == ["full", "cheap", "middle", "like cheap", "below", "far"]
    assert ranked_by_hypervolume({"full": trial(98, 1.0)}) == ["full"]


def test_the_first_batch_of_a_plan_does_not_count_as_its_speed() -> None:
    full, slow = trial(9, 1.0, 10), trial(9, 0.5, 10)
    trials = {"full": full, "slow": replace(slow, seconds=50.0), "fast": replace(slow, seconds=0.1)}
    assert expected_seconds(trials, "slow") == pytest.approx(2 * 0.5 * 0.1)
    assert expected_seconds(trials, "fast") == pytest.approx(0.01)


def test_as_many_plans_as_the_time_allows_and_always_the_first() -> None:
    seconds = {"full": 10.0, "a": 5.0, "b": 5.0}
    names = list(seconds)
    assert [affordable(names, seconds, s) for s in (0, 12, 15, 19.9, 20, math.inf)] == [1, 1, 2, 2, 3, 3]


def test_a_trial_on_fewer_images_has_the_same_mean_cost() -> None:
    first = trial(3, 0.5, 10).first(4)
    assert first.scores == (1.0, 1.0, 1.0, 0.0)
    assert first.mean_gflops == pytest.approx(0.5)
    assert first.image_seconds == pytest.approx(0.1)
