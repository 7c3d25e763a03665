"""Plans: the text form is canonical and parses back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import BadPlan
from foveate.core.plan import PRECISIONS, Plan

FULL = Plan("vit-t", 224, "bf16")

plans = st.builds(
    Plan,
    variant=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True),
    image_size=st.integers(10, 2000),
    precision=st.sampled_from(PRECISIONS),
    reducer=st.sampled_from(["none", "evit:0.7", "tome:8", "diffrate:2.3", "evit:0.5:1,2"]),
    depth=st.none() | st.integers(1, 40),
    exit=st.none() | st.sampled_from(["0.9", "entropy:0.3"]),
)


@given(plans)
def test_every_plan_survives_its_text_form(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("vit-t@224/evit:0.7/exit:0.9/bf16", "vit-t@224/evit:0.7/exit:0.9/bf16"),
        ("vit-t@224", "vit-t@224/fp32"),
        ("vit-t@224/none/fp32", "vit-t@224/fp32"),
        ("vit-t@224/bf16/evit:0.5", "vit-t@224/evit:0.5/bf16"),
        ("vit-t@224/evit:.50", "vit-t@224/evit:0.5/fp32"),
        ("vit-t@224/evit:0.500/exit:0.90", "vit-t@224/evit:0.5/exit:0.9/fp32"),
        ("vit-t@224/tome:08:-1.0", "vit-t@224/tome:8:-1/fp32"),
        ("vit-t@224/tome:8:-.50", "vit-t@224/tome:8:-0.5/fp32"),
        ("vit-t@224/tome:8:-0", "vit-t@224/tome:8:0/fp32"),
        (" vit-t@160/depth:8/fp16 ", "vit-t@160/depth:8/fp16"),
        ("vit-t@224/tome:08/depth:012.0", "vit-t@224/tome:8/depth:12/fp32"),
        ("vit-t@224/evit:1.0/exit:00.10", "vit-t@224/evit:1/exit:0.1/fp32"),
        ("vit-t@224/evit:0.00001", "vit-t@224/evit:0.00001/fp32"),
        ("vit-t@224/ats:10000000/exit:0.99999999", "vit-t@224/ats:10000000/exit:0.99999999/fp32"),
        ("vit-t@224/content:0.00/stitch:000", "vit-t@224/content:0/stitch:0/fp32"),
    ],
)
def test_the_text_form_is_canonical(text: str, canonical: str) -> None:
    assert str(Plan.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("full", "vit-t@224/bf16"),
        ("full/fp32", "vit-t@224/fp32"),
        ("evit:0.5", "vit-t@224/evit:0.5/bf16"),
        ("expedit:0.7@6", "vit-t@224/expedit:0.7@6/bf16"),
        ("vit-t@224/evit:0.5", "vit-t@224/evit:0.5/bf16"),
        ("vit-t@160/fp32", "vit-t@160/fp32"),
        ("depth:6/evit:0.5", "vit-t@224/evit:0.5/depth:6/bf16"),
        ("vit-t", "vit-t@224/bf16"),
        ("vit-t/pool:49", "vit-t@224/pool:49/bf16"),
        ("vit-t/fp32/depth:6", "vit-t@224/depth:6/fp32"),
    ],
)
def test_missing_parts_default_to_those_of_the_base(text: str, canonical: str) -> None:
    assert str(Plan.parse(text, FULL)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "evit:0.5", "vit-t", "vit-t@", "vit-t@0", "vit-t@22444", "vit t@224", "vit-t@224//bf16",
        "vit-t@224/bf16/fp32", "vit-t@224/evit:1/tome:2", "vit-t@224/depth:x", "vit-t@224/depth:0",
        "vit-t@224/depth:", "vit-t@224/exit:", "vit-t@224/exit", "vit-t@224/content/exit:1",
        "vit-t@224/EVIT", "vit-t@224/evit:0.5;rm", "vit-t@224/" + "a" * 999,
    ],
)  # fmt: skip
def test_invalid_plans_are_refused_in_one_short_sentence(text: str) -> None:
    with pytest.raises(BadPlan) as refused:
        Plan.parse(text)
    assert len(refused.value.detail) < 200
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("text", ["vit-xs@10000", "vit-t@5/evit:0.5", "vit-t@0", "vit-t@-224", "vit-t@0224"])
def test_a_size_out_of_range_is_named(text: str) -> None:
    with pytest.raises(BadPlan, match=f"the size in a plan is a number from 10 to 9999.* not '{text[:6]}"):
        Plan.parse(text, FULL)
    with pytest.raises(BadPlan, match="number from 10 to 9999, as in vit-t@224, not 'vit-t@10000'"):
        Plan("vit-t", 10000)


def test_parts_leave_out_variant_size_and_precision() -> None:
    assert FULL.parts == "full"
    assert Plan.parse("evit:0.5/exit:0.9", FULL).parts == "evit:0.5/exit:0.9"
