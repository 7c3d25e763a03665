"""Model cards: parsing plans, rungs and their quality."""

from dataclasses import replace

import pytest

from foveate.core.errors import BadPlan
from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan

FULL = Plan("large", 224, "bf16")
SIBLING = Plan("small", 160, "bf16")
HALF = replace(FULL, reducer="evit:0.5")
CARD = ModelCard(
    "large", "", FULL, ("yes", "no"), 0, None,
    (Rung(SIBLING, 0.1, 9, 0.8), Rung(HALF, 0.5, 5, None), Rung(FULL, 1.0, 10, 1.0)),
)  # fmt: skip


def test_variants_are_the_model_and_its_siblings() -> None:
    assert CARD.variants == {"large", "small"}


@pytest.mark.parametrize(
    ("text", "plan"),
    [("full", FULL), ("evit:0.5", HALF), ("small@160", SIBLING), ("large@192/fp32", Plan("large", 192))],
)
def test_plans_are_complete_or_relative_to_full(text: str, plan: Plan) -> None:
    assert CARD.plan(text) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("other@224", "other is not a variant of large; it has large, small"),
        ("smal@224", "smal is not a variant of large; did you mean small?"),
        ("evit:0.5//", "plan part"),
    ],
)
def test_other_plans_are_refused(text: str, words: str) -> None:
    with pytest.raises(BadPlan) as refused:
        CARD.plan(text)
    assert words in refused.value.detail


def test_a_rung_is_found_in_any_precision() -> None:
    assert CARD.rung(replace(HALF, precision="fp32")) is CARD.ladder[1]
    assert CARD.rung(replace(FULL, depth=3)) is None
    assert CARD.rung(replace(SIBLING, variant="large")) is None


def test_quality_is_that_of_the_rung_if_it_was_measured() -> None:
    plans = (FULL, SIBLING, HALF, replace(FULL, depth=3), replace(FULL, precision="fp32"))
    assert [CARD.quality_of(plan) for plan in plans] == [1.0, 0.8, None, None, 1.0]


def test_a_variant_without_its_size_is_refused_with_the_plan_that_is_meant() -> None:
    card = replace(
        CARD, ladder=(Rung(Plan("lite-0", 128), 0.1, 9, 0.8), Rung(Plan("lite-0", 160), 0.2, 9, 0.9))
    )
    with pytest.raises(BadPlan, match="a plan names an image size too, as in lite-0@160, not 'lite-0'"):
        card.plan("lite-0")
