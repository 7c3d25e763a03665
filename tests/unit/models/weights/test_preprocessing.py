"""Preprocessing of checkpoints, against transformers' own."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.weights.preprocessing import parse_preprocessing
from tests.support import pretrained
from tests.support.pretrained import (
    RANGE,
    SIDE,
    SQUARE,
    load_runner,
    random_image,
    saved,
    transformers,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_pixels_equal_transformers_own_preprocessor(tmp_path: Path) -> None:
    processor = transformers.SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    path = saved(tmp_path / "m", pretrained.segformer())
    (path / "preprocessor_config.json").unlink()
    processor.save_pretrained(path)
    runner, media = load_runner(path), [random_image(1), random_image(2)]
    expected = torch.as_tensor(np.stack(processor(media)["pixel_values"]))
    assert (runner.preprocess(runner.stack(media, runner.full), SIDE) - expected).abs().max() < 1e-5
    assert runner.card.input is not None
    assert runner.card.input.interpolation == "bilinear"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (96, InputSpec(1.0, "squash", "bilinear"))),
        ({"resample": 3}, (96, InputSpec(1.0, "squash", "bicubic"))),
        ({"size": {"shortest_edge": 128}}, (128, InputSpec(1.0, "center", "bilinear"))),
        ({"size": {"shortest_edge": 128}, "crop_size": 96}, (96, InputSpec(0.75, "center", "bilinear"))),
        ({"size": {"height": 96, "width": 64}}, (64, InputSpec(1.0, "squash", "bilinear"))),
        ({"size": 80, "crop_size": 64, "do_center_crop": False}, (80, InputSpec(1.0, "center", "bilinear"))),
        ({"size": 80, "crop_size": 64, "do_resize": False}, (64, InputSpec(1.0, "center", "bilinear"))),
    ],
)
def test_sizes_and_filters(changes: dict[str, Any], expected: tuple[int, InputSpec]) -> None:
    parsed = parse_preprocessing(RANGE | SQUARE | changes, "here")
    assert (parsed.side, parsed.input) == expected
    assert not parsed.reversed


def test_every_size_is_resized_to_as_it_is_stated() -> None:
    for side in range(32, 600, 14):
        for resized in range(side, side + 200):
            table = SQUARE | {"size": {"shortest_edge": resized}, "crop_size": side}
            share = parse_preprocessing(table, "here").input.crop_pct
            assert max(side, math.floor(side / share)) == resized


def test_normalisation_is_of_channels_in_0_to_1() -> None:
    table = {"size": 96, "image_mean": 0.5, "image_std": [0.2, 0.25, 0.5]}
    plain = parse_preprocessing(table, "here")
    assert plain.mean == (0.5, 0.5, 0.5)
    assert plain.std == (0.2, 0.25, 0.5)
    bytes_in = parse_preprocessing(table | {"do_rescale": False}, "here")
    assert bytes_in.mean == pytest.approx([0.5 / 255] * 3)
    shifted = parse_preprocessing(table | {"rescale_factor": 1 / 127.5}, "here", offset=True)
    assert shifted.mean == pytest.approx([0.75] * 3)
    assert shifted.std == pytest.approx([0.1, 0.125, 0.25])
    unscaled = parse_preprocessing(table | {"do_normalize": False}, "here")
    assert (unscaled.mean, unscaled.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": None}, "has no size and no crop_size"),
        ({"size": {"height": "x", "width": 3}}, "a size that is not served"),
        ({"size": 9}, "sides are 10 to 4096 pixels"),
        ({"rescale_factor": 0}, "rescale_factor is 0, which is no factor above 0"),
        ({"image_mean": [0.5]}, "image_mean takes three numbers"),
        ({"image_std": [0, 1, 1]}, "image_std must be above 0"),
    ],
)
def test_wrong_tables_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SetupError, match=f"^here.*{sentence}"):
        parse_preprocessing(RANGE | SQUARE | changes, "here")
