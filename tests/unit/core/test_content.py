"""Choosing a rung by the scout's answer: what is sure enough, what was learnt, and what the file says."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate.core.content import ContentRungs, fit, sureness
from foveate.core.errors import SetupError
from foveate.core.profile import Profile
from tests.support.measuring import FULL, written

Floats = NDArray[np.float64]

SURE, LEANING, TORN = (0.98, 0.01, 0.01), (0.7, 0.2, 0.1), (0.36, 0.33, 0.31)
BY_LEAD = ContentRungs(("a", "b", "full"), ((0.0, 10.0, 0.0), (0.0, 10.0, 0.0)), (-6.0, -3.0))
"""Likely to suffice at leads of 0.97, 0.5 and 0.03: a 0.98, 0.27, 0.003; b 1.00, 0.88, 0.06."""


def chosen(rungs: ContentRungs, rows: list[tuple[float, ...]], certainty: float) -> list[int]:
    return [int(rung) for rung in rungs.choose(np.array(rows, np.float32), certainty)]


@pytest.mark.parametrize(
    ("scores", "certainty", "rung"),
    [
        (SURE, 0.9, 0),
        (SURE, 0.99, 1),
        (SURE, 0.9999, 2),
        (LEANING, 0.25, 0),
        (LEANING, 0.3, 1),
        (LEANING, 0.87, 1),
        (LEANING, 0.89, 2),
        (TORN, 0.05, 1),
        (TORN, 0.5, 2),
        (TORN, 0.001, 0),
    ],
)
def test_the_cheapest_rung_that_is_likely_enough_is_chosen(
    scores: tuple[float, ...], certainty: float, rung: int
) -> None:
    assert chosen(BY_LEAD, [scores], certainty) == [rung]


def test_where_two_are_as_likely_the_cheaper_is_chosen() -> None:
    alike = ContentRungs(("a", "b", "full"), ((0.0, 10.0, 0.0),) * 2, (-6.0, -6.0))
    assert chosen(alike, [SURE, TORN], 0.9) == [0, 2]


def test_the_cheapest_is_chosen_though_a_dearer_one_is_likelier() -> None:
    assert chosen(BY_LEAD, [SURE], 0.5) == [0]
    odd = ContentRungs(("a", "b", "full"), ((0.0, 0.0, 0.0),) * 2, (-3.0, 3.0))
    assert chosen(odd, [SURE], 0.5) == [1]


def test_a_likelihood_that_is_exactly_the_certainty_suffices() -> None:
    even = ContentRungs(("a", "full"), ((0.0, 0.0, 0.0),), (0.0,))
    assert chosen(even, [SURE], 0.5) == [0]
    assert chosen(even, [SURE], float(np.nextafter(0.5, 1))) == [1]


def test_certainty_1_asks_for_full_unless_the_likelihood_is_1_to_the_last_digit() -> None:
    assert chosen(replace(BY_LEAD, bias=(20.0, 20.0)), [SURE, LEANING, TORN], 1.0) == [2, 2, 2]
    assert chosen(replace(BY_LEAD, bias=(20.0, 60.0)), [SURE, LEANING, TORN], 1.0) == [1, 1, 1]


@pytest.mark.parametrize("row", [(0.0,) * 3, (np.nan,) * 3, (0.9, np.nan, 0.1), (np.inf, 0.0, 0.0)])
@pytest.mark.parametrize("weight", [(1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_row_that_says_nothing_goes_to_the_last_rung_whatever_was_learnt(
    row: tuple[float, ...], weight: tuple[float, float, float]
) -> None:
    rungs = ContentRungs(("a", "b", "full"), (weight,) * 2, (5.0, 5.0))
    assert chosen(rungs, [row], 0.1) == [2]
    assert chosen(rungs, [SURE, row, LEANING], 0.1)[1] == 2


def test_rows_do_not_see_each_other() -> None:
    random = np.random.default_rng(0)
    scores = random.dirichlet(np.full(7, 0.3), size=64)
    scores[5], scores[9] = np.nan, 0
    together = BY_LEAD.choose(scores, 0.8)
    assert together.dtype == np.int64
    assert set(together.tolist()) == {0, 1, 2}
    assert [int(BY_LEAD.choose(row[None], 0.8)[0]) for row in scores] == together.tolist()
    assert np.array_equal(BY_LEAD.choose(scores[::-1], 0.8), together[::-1])


def test_more_certainty_never_chooses_a_cheaper_rung() -> None:
    scores = np.random.default_rng(1).dirichlet(np.full(5, 0.4), size=200)
    choices = [BY_LEAD.choose(scores, certainty) for certainty in (0.2, 0.5, 0.8, 0.95, 0.99)]
    for less, more in pairwise(choices):
        assert (more >= less).all()
        assert (more > less).any()


def test_no_rows_choose_nothing() -> None:
    assert BY_LEAD.choose(np.zeros((0, 3)), 0.9).shape == (0,)


def test_the_three_measures_by_hand() -> None:
    (row,) = sureness(np.array([[0.5, 0.3, 0.2]]))
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    assert row == pytest.approx([0.0, 0.2, entropy])
    assert np.isfinite(sureness(np.array([[1.0, 0, 0], [0, 0, 0], [np.nan] * 3, [np.inf, 0, 0]]))).all()


def test_a_model_of_one_class_has_a_sureness_too() -> None:
    (row,) = sureness(np.array([[1.0]]))
    assert row == pytest.approx([np.log(1e6), 1.0, 0.0], abs=1e-4)
    assert chosen(BY_LEAD, [(1.0,), (0.0,)], 0.9) == [0, 2]


@pytest.mark.parametrize(
    ("rungs", "weight", "bias"),
    [
        (("full",), (), ()),
        ((), (), ()),
        (("a", "full"), (), ()),
        (("a", "full"), ((1.0, 1.0, 1.0),) * 2, (0.0,)),
        (("a", "full"), ((1.0, 1.0, 1.0),), (0.0, 0.0)),
        (("a", "b", "full"), ((1.0, 1.0, 1.0),), (0.0,)),
    ],
)
def test_rungs_and_weights_that_do_not_go_together_are_refused(
    rungs: tuple[str, ...], weight: tuple[tuple[float, float, float], ...], bias: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="every rung but the last has its weights"):
        ContentRungs(rungs, weight, bias)


# Learning.


def scouted(count: int, seed: int) -> tuple[Floats, Floats]:
    """Answers over four classes, and how far the best is ahead."""
    scores = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=count)
    second, best = np.sort(scores, axis=1)[:, -2:].T
    return scores, best - second


def test_where_sure_answers_suffice_that_is_what_is_learnt() -> None:
    scores, lead = scouted(400, 0)
    rungs = fit(("a", "b", "full"), scores, np.stack([lead > 0.6, lead > 0.2], axis=1))
    assert rungs.rungs == ("a", "b", "full")
    fresh, lead = scouted(400, 1)
    choice = rungs.choose(fresh, 0.5)
    wanted = np.where(lead > 0.6, 0, np.where(lead > 0.2, 1, 2))
    assert (choice == wanted).mean() > 0.97
    careful = rungs.choose(fresh, 0.99)
    assert (lead[careful == 0] > 0.6).all()
    assert (careful == 0).sum() > 40


def test_from_noisy_answers_likelihoods_are_learnt_that_come_true() -> None:
    """Rungs chosen with a certainty suffice about as often as that says, on pictures never seen."""

    def suffices(lead: Floats, seed: int) -> NDArray[np.bool_]:
        return np.random.default_rng(seed).random(len(lead)) < 1 / (1 + np.exp(4 - 10 * lead))

    scores, lead = scouted(4000, 2)
    rungs = fit(("a", "full"), scores, suffices(lead, 3)[:, None])
    fresh, lead = scouted(20000, 4)
    truth = suffices(lead, 5)
    likely = 1 / (1 + np.exp(-(sureness(fresh) @ np.array(rungs.weight[0]) + rungs.bias[0])))
    for low in (0.1, 0.3, 0.5, 0.7, 0.9):
        told = (likely >= low) & (likely < low + 0.1)
        assert told.sum() > 200
        assert truth[told].mean() == pytest.approx(low + 0.05, abs=0.06)
    for certainty in (0.8, 0.95):
        trusted = rungs.choose(fresh, certainty) == 0
        assert 0.1 < trusted.mean() < 1
        assert truth[trusted].mean() > certainty
    assert truth.mean() < 0.8


def test_the_same_pictures_teach_the_same_in_any_order() -> None:
    scores, lead = scouted(300, 6)
    suffices = (lead > 0.4)[:, None]
    once = fit(("a", "full"), scores, suffices)
    assert fit(("a", "full"), scores, suffices) == once
    again = fit(("a", "full"), scores[::-1], suffices[::-1])
    assert again.weight[0] == pytest.approx(once.weight[0], rel=1e-5)
    assert again.bias == pytest.approx(once.bias, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_rung_that_always_or_never_suffices_is_learnt_without_end(count: int) -> None:
    scores, _ = scouted(count, 7)
    never, always = np.zeros(count, bool), np.ones(count, bool)
    rungs = fit(("a", "b", "full"), scores, np.stack([never, always], axis=1))
    assert np.isfinite(rungs.weight).all()
    assert np.isfinite(rungs.bias).all()
    assert rungs.choose(scores, 0.5).tolist() == [1] * count


def test_scores_that_are_sure_beyond_measure_are_learnt_from_too() -> None:
    scores = np.eye(3)[np.arange(60) % 3]
    torn = np.full((60, 3), 1 / 3)
    suffices = np.repeat([True, False], 60)[:, None]
    rungs = fit(("a", "full"), np.concatenate([scores, torn]), suffices)
    assert np.isfinite([*rungs.weight[0], *rungs.bias]).all()
    assert rungs.choose(np.stack([scores[0], torn[0]]), 0.9).tolist() == [0, 1]


def test_more_penalty_means_smaller_weights() -> None:
    scores, lead = scouted(300, 8)
    suffices = (lead > 0.4)[:, None]
    loose, tight = (fit(("a", "full"), scores, suffices, strength) for strength in (1e-2, 10.0))
    assert np.linalg.norm(tight.weight) < np.linalg.norm(loose.weight) / 2


# On the disk.


def test_a_profile_keeps_what_was_learnt_to_the_last_digit() -> None:
    scores, lead = scouted(200, 9)
    content = fit(("tiny@32", "evit:0.5", "full"), scores, np.stack([lead > 0.6, lead > 0.2], axis=1))
    kept = replace(written(FULL), content=content)
    found = Profile.read(kept.text(), "x")
    assert found == kept
    assert found.content is not None
    assert np.array_equal(found.content.choose(scores, 0.9), content.choose(scores, 0.9))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("-0.125", "NaN", "content.bias.0: .*finite"),
        ("-0.125", '"-0.125"', "content.bias.0: .*valid number"),
        ("-0.125", "", "content: .*every rung but the last has its weights"),
        ("-0.125", "1.0, 2.0", "content: .*every rung but the last has its weights"),
        ("2.5,", "", "content.weight.0"),
        ("2.5,", "2.5, 2.5,", "content.weight.0: .*at most 3 items"),
        ('"tiny@32",', "", "content: .*every rung but the last has its weights"),
        ('"rungs"', '"steps"', "content.rungs: Field required"),
        ('"tiny@32"', '"tiny@"', "a plan starts with variant@size"),
        ('"tiny@32"', '"evit 0.5"', "'evit 0.5' is not a part of a plan"),
        ('"tiny@32"', '"content:0.9"', "content chooses among plans that leave nothing to it"),
    ],
)
def test_content_of_another_shape_is_refused_in_a_sentence(old: str, new: str, sentence: str) -> None:
    content = ContentRungs(("tiny@32", "full"), ((1.5, 2.5, 3.5),), (-0.125,))
    text = replace(written(FULL), content=content).text()
    assert text.count(old) == 1
    with pytest.raises(SetupError, match=rf"^here\.json is not a readable profile: .*{sentence}") as refused:
        Profile.read(text.replace(old, new), "here.json")
    assert "\n" not in refused.value.detail
