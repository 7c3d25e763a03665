"""Content-based choice of a rung: thresholds, unusable scores, and the text in profile files."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from foveate.core.content import ContentRungs, confidence_features
from foveate.core.errors import SetupError
from foveate.core.profile import Profile
from tests.support.measuring import FULL, written

CONFIDENT, LIKELY, UNSURE = (0.98, 0.01, 0.01), (0.7, 0.2, 0.1), (0.36, 0.33, 0.31)
BY_MARGIN = ContentRungs(("a", "b", "full"), ((0.0, 10.0, 0.0), (0.0, 10.0, 0.0)), (-6.0, -3.0))
"""Probability to suffice at margins of 0.97, 0.5 and 0.03: a 0.98, 0.27, 0.003; b 1.00, 0.88, 0.06."""


def chosen(rungs: ContentRungs, rows: list[tuple[float, ...]], certainty: float) -> list[int]:
    return [int(rung) for rung in rungs.choose(np.array(rows, np.float32), certainty)]


@pytest.mark.parametrize(
    ("scores", "certainty", "rung"),
    [
        (CONFIDENT, 0.9, 0),
        (CONFIDENT, 0.99, 1),
        (CONFIDENT, 0.9999, 2),
        (LIKELY, 0.25, 0),
        (LIKELY, 0.3, 1),
        (LIKELY, 0.87, 1),
        (LIKELY, 0.89, 2),
        (UNSURE, 0.05, 1),
        (UNSURE, 0.5, 2),
        (UNSURE, 0.001, 0),
    ],
)
def test_chooses_the_cheapest_rung_that_is_probable_enough(
    scores: tuple[float, ...], certainty: float, rung: int
) -> None:
    assert chosen(BY_MARGIN, [scores], certainty) == [rung]


def test_chooses_the_cheaper_of_two_equally_probable_rungs() -> None:
    alike = ContentRungs(("a", "b", "full"), ((0.0, 10.0, 0.0),) * 2, (-6.0, -6.0))
    assert chosen(alike, [CONFIDENT, UNSURE], 0.9) == [0, 2]


def test_chooses_a_cheap_rung_although_a_dearer_one_is_more_probable() -> None:
    assert chosen(BY_MARGIN, [CONFIDENT], 0.5) == [0]
    odd = ContentRungs(("a", "b", "full"), ((0.0, 0.0, 0.0),) * 2, (-3.0, 3.0))
    assert chosen(odd, [CONFIDENT], 0.5) == [1]


def test_a_probability_equal_to_the_certainty_suffices() -> None:
    even = ContentRungs(("a", "full"), ((0.0, 0.0, 0.0),), (0.0,))
    assert chosen(even, [CONFIDENT], 0.5) == [0]
    assert chosen(even, [CONFIDENT], float(np.nextafter(0.5, 1))) == [1]


def test_certainty_1_chooses_full_unless_the_probability_rounds_to_1() -> None:
    assert chosen(replace(BY_MARGIN, bias=(20.0, 20.0)), [CONFIDENT, LIKELY, UNSURE], 1.0) == [2, 2, 2]
    assert chosen(replace(BY_MARGIN, bias=(20.0, 60.0)), [CONFIDENT, LIKELY, UNSURE], 1.0) == [1, 1, 1]


@pytest.mark.parametrize("row", [(0.0,) * 3, (np.nan,) * 3, (0.9, np.nan, 0.1), (np.inf, 0.0, 0.0)])
@pytest.mark.parametrize("weight", [(1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_an_unusable_row_gets_the_last_rung_with_any_weights(
    row: tuple[float, ...], weight: tuple[float, float, float]
) -> None:
    rungs = ContentRungs(("a", "b", "full"), (weight,) * 2, (5.0, 5.0))
    assert chosen(rungs, [row], 0.1) == [2]
    assert chosen(rungs, [CONFIDENT, row, LIKELY], 0.1)[1] == 2


def test_rows_are_independent() -> None:
    random = np.random.default_rng(0)
    scores = random.dirichlet(np.full(7, 0.3), size=64)
    scores[5], scores[9] = np.nan, 0
    together = BY_MARGIN.choose(scores, 0.8)
    assert together.dtype == np.int64
    assert set(together.tolist()) == {0, 1, 2}
    assert [int(BY_MARGIN.choose(row[None], 0.8)[0]) for row in scores] == together.tolist()
    assert np.array_equal(BY_MARGIN.choose(scores[::-1], 0.8), together[::-1])


def test_more_certainty_never_chooses_a_cheaper_rung() -> None:
    scores = np.random.default_rng(1).dirichlet(np.full(5, 0.4), size=200)
    choices = [BY_MARGIN.choose(scores, certainty) for certainty in (0.2, 0.5, 0.8, 0.95, 0.99)]
    for less, more in pairwise(choices):
        assert (more >= less).all()
        assert (more > less).any()


def test_no_rows_choose_nothing() -> None:
    assert BY_MARGIN.choose(np.zeros((0, 3)), 0.9).shape == (0,)


def test_confidence_features_of_a_known_row() -> None:
    (row,) = confidence_features(np.array([[0.5, 0.3, 0.2]]))
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    assert row == pytest.approx([0.0, 0.2, entropy])
    assert np.isfinite(
        confidence_features(np.array([[1.0, 0, 0], [0, 0, 0], [np.nan] * 3, [np.inf, 0, 0]]))
    ).all()


def test_confidence_features_of_a_model_with_one_class() -> None:
    (row,) = confidence_features(np.array([[1.0]]))
    assert row == pytest.approx([np.log(1e6), 1.0, 0.0], abs=1e-4)
    assert chosen(BY_MARGIN, [(1.0,), (0.0,)], 0.9) == [0, 2]


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
def test_refuses_rungs_and_weights_of_different_lengths(
    rungs: tuple[str, ...], weight: tuple[tuple[float, float, float], ...], bias: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="one entry for each of the rungs but the last"):
        ContentRungs(rungs, weight, bias)


# Profile files


def test_weights_survive_a_profile_file_exactly() -> None:
    content = ContentRungs(
        ("tiny@32", "evit:0.5", "full"), ((0.1, 1 / 3, -2e-17), (1.0, 2.0, 3.0)), (0.3, -0.7)
    )
    profile = replace(written(FULL), content=content)
    assert Profile.read(profile.text(), "x") == profile


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("-0.125", "NaN", "content.bias.0: .*finite"),
        ("-0.125", '"-0.125"', "content.bias.0: .*valid number"),
        ("-0.125", "", "content: .*one entry for each of the rungs but the last"),
        ("-0.125", "1.0, 2.0", "content: .*one entry for each of the rungs but the last"),
        ("2.5,", "", "content.weight.0"),
        ("2.5,", "2.5, 2.5,", "content.weight.0: .*at most 3 items"),
        ('"tiny@32",', "", "content: .*one entry for each of the rungs but the last"),
        ('"rungs"', '"steps"', "content.rungs: Field required"),
        ('"tiny@32"', '"tiny@"', "a plan must start with variant@size"),
        ('"tiny@32"', '"evit 0.5"', "'evit 0.5' is not a valid plan part"),
        ('"tiny@32"', '"content:0.9"', "the rungs of a content plan must not be content plans themselves"),
    ],
)
def test_an_invalid_content_section_is_refused_in_one_sentence(old: str, new: str, sentence: str) -> None:
    content = ContentRungs(("tiny@32", "full"), ((1.5, 2.5, 3.5),), (-0.125,))
    text = replace(written(FULL), content=content).text()
    assert text.count(old) == 1
    with pytest.raises(SetupError, match=rf"^here\.json is not a valid profile: .*{sentence}") as refused:
        Profile.read(text.replace(old, new), "here.json")
    assert "\n" not in refused.value.detail
