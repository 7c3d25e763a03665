"""What can be stated about a checkpoint, in the spellings of flags and of JSON, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from foveate.core.checkpoint_options import CheckpointOptions, flag_of, text_of


@pytest.mark.parametrize("value", ["0.485, 0.456,0.406", [0.485, 0.456, 0.406], (0.485, 0.456, 0.406)])
def test_channels_in_text_and_in_json(value: Any) -> None:
    assert CheckpointOptions(mean=value).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("value", ["0.5", 0.5])
def test_one_number_stands_for_all_channels(value: Any) -> None:
    assert CheckpointOptions(std=value).std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"mean": "123.675,116.28,103.53"},
            "123.675 is not in 0..1; divide values for channels in 0..255 by",
        ),
        ({"mean": "nan"}, "nan is not in 0..1"),
        ({"std": 0}, "greater than 0"),
        ({"std": [0.2, 0.2]}, "it takes one number, or three"),
        ({"mean": "0.5,0.5"}, "it takes one number, or three"),
        ({"image_size": 100_000}, "less than or equal to 4096"),
        ({"mena": 0.5}, "Extra inputs are not permitted"),
        ({"interpolation": "lanczos"}, "'bilinear' or 'bicubic'"),
        ({"eps": 0}, "greater than 0"),
        ({"labels": {"a": "cat"}}, "class indices as keys"),
        ({"labels": {"9000000": "cat"}}, "class indices go from 0"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        CheckpointOptions(**values)


def test_table_of_labels_is_put_in_order() -> None:
    assert CheckpointOptions(labels={"2": "newt", "0": "cat"}).labels == ("cat", "class 1", "newt")  # type: ignore[arg-type]


def test_stated_values_come_before_others() -> None:
    flags, file = CheckpointOptions(heads=12), CheckpointOptions(heads=6, eps=1e-5)
    assert flags.over(file) == CheckpointOptions(heads=12, eps=1e-5)
    assert flags.stated() == {"heads": 12}


def test_values_are_shown_as_flags_take_them() -> None:
    assert flag_of("crop_pct") == "--crop-pct"
    assert [text_of(value) for value in ((0.5, 0.25, 1.0), 1e-6, 12, "gelu")] == [
        "0.5,0.25,1",
        "1e-06",
        "12",
        "gelu",
    ]
    assert CheckpointOptions(mean=text_of((0.485, 0.456, 0.406))).mean == (0.485, 0.456, 0.406)  # type: ignore[arg-type]
