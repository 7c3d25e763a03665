"""The catalogue of images."""

import io

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout
from loadtests.load.images import catalogue, enlarged


def test_the_catalogue_has_held_out_scenes_with_their_labels() -> None:
    scenes, images = heldout(), catalogue("scene", 30, seed=3)
    assert len(images) == len(set(images.jpegs)) == 30
    for jpeg, label in zip(images.jpegs, images.labels, strict=True):
        assert scenes.labels[scenes.targets[scenes.jpegs.index(jpeg)]] == label
    assert catalogue("scene", 30, seed=3) == images
    assert catalogue("scene", 30, seed=4) != images
    assert len(catalogue("scene", 0, seed=0)) == len(scenes)
    with pytest.raises(SetupError, match=r"--catalogue must be 0 to 1040.*, not 1041"):
        catalogue("scene", 1041, 0)


def test_an_enlarged_scene_has_the_scene_in_its_middle() -> None:
    (jpeg,) = catalogue("scene", 1, 0).jpegs
    scene = Image.open(io.BytesIO(jpeg)).convert("RGB")
    large = Image.open(io.BytesIO(enlarged(jpeg)))
    assert (large.format, large.size) == ("JPEG", (640, 480))
    middle = large.crop((80, 0, 560, 480)).resize(scene.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(middle, int) - np.asarray(scene, int)).mean() < 4
