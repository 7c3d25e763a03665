"""The batch of an own model: scaling, preparation of single images, stacking."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import RunFailed
from foveate.core.plan import Plan
from foveate.models.own.inputs import prepare, scaled, stacked
from tests.support.own_models import plain_image

PLAN = Plan("mine", 16)


def test_pixels_are_stacked() -> None:
    batch = prepare([plain_image(3), plain_image(4)], PLAN, "bicubic", None)
    assert (batch.inputs.shape, batch.inputs.dtype) == ((2, 16, 16, 3), np.uint8)
    assert batch.inputs[:, 0, 0, 0].tolist() == [3, 4]
    assert len(batch) == 2


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_larger_images_are_scaled_as_pillow_does_it(interpolation: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    resampling = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), resampling))
    assert np.array_equal(scaled(pixels, 16, interpolation), expected)


def test_each_image_is_prepared_and_a_failure_is_its_own() -> None:
    def preprocess(image: Image.Image) -> Any:
        assert image.mode == "RGB"
        assert image.size == (16, 16)
        red = np.asarray(image)[0, 0, 0]
        if red == 4:
            raise ValueError("four")
        return np.full(5, red)

    batch = prepare([plain_image(red) for red in (3, 4, 5)], PLAN, "bicubic", preprocess)
    assert batch.inputs.tolist() == [[3] * 5, [5] * 5]
    assert [(number, str(error)) for number, error in batch.failures.items()] == [(1, "four")]


def test_preprocess_may_not_end_more_than_its_image() -> None:
    def preprocess(image: Image.Image) -> Any:
        raise SystemExit(3)

    batch = prepare([plain_image(3)], PLAN, "bicubic", preprocess)
    assert isinstance(batch.failures[0], RunFailed)
    assert "preprocess of the model raised SystemExit" in str(batch.failures[0])


def test_all_images_may_fail() -> None:
    def preprocess(image: Image.Image) -> Any:
        raise ValueError("never")

    batch = prepare([plain_image(3)], PLAN, "bicubic", preprocess)
    assert (batch.inputs, list(batch.failures)) == ([], [0])


def test_arrays_and_tensors_are_stacked_and_the_rest_is_a_list() -> None:
    assert stacked([np.ones(2), np.ones(2)]).shape == (2, 2)
    assert torch.equal(stacked([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1], [0, 0]]))
    assert stacked([{"a": 1}, {"a": 2}]) == [{"a": 1}, {"a": 2}]
    assert len(stacked([np.ones(2), [1, 2]])) == 2
    assert stacked([]) == []
    with pytest.raises(RunFailed, match=r"shapes \(2,\) and \(3,\)"):
        stacked([np.ones(2), np.ones(3)])


@pytest.mark.parametrize("media", [b"bytes", np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), np.uint8)])
def test_other_media_are_refused(media: Any) -> None:
    with pytest.raises(RunFailed, match="square RGB pixels"):
        prepare([media], PLAN, "bicubic", None)
