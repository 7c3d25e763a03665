"""Suggestions for unknown names."""

import pytest

from foveate.core.nearest_names import did_you_mean, nearest

KNOWN = ("vit-t", "vit-xs", "vit-t-seg", "resnet18", "resnet34", "resnet50", "resnet50.a1_in1k")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vit-tt", "; did you mean vit-t, vit-xs or vit-t-seg?"),
        ("VIT-T", "; did you mean vit-t, vit-xs or vit-t-seg?"),
        ("resnet50.a1_in1", "; did you mean resnet50.a1_in1k, resnet50 or resnet18?"),
        ("gpt", ""),
        ("", ""),
        ("x" * 1_000_000, ""),
    ],
)
def test_nearest_names_end_the_sentence(name: str, sentence: str) -> None:
    assert did_you_mean(name, KNOWN) == sentence


def test_three_names_at_most() -> None:
    assert len(nearest("resnet", [f"resnet{i}" for i in range(20)])) == 3
