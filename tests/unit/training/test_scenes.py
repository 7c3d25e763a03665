"""Synthetic scenes and videos: reproducible, with masks and labels that fit the pixels."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install --group dev")

from training import scenes
from training.emoji import FONT
from training.labels import LABELS
from training.motions import NAMES, MotionVideo
from training.scenes import draw
from training.textures import TEXTURES, fractal, palette, texture

needs_font = pytest.mark.skipif(not FONT.exists(), reason=f"{FONT} is not installed: make train-env")


@pytest.fixture(autouse=True)
def small_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "BANK_SIZE", 2)


def test_every_texture_is_an_image_and_depends_on_the_seed_alone() -> None:
    for name, make in TEXTURES.items():
        image, same, other = (make(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
        assert image.shape == (64, 64, 3), name
        assert image.min() >= 0 and image.max() <= 255
        assert np.array_equal(image, same) and not np.array_equal(image, other)


def test_a_random_texture_has_a_known_kind() -> None:
    kind, image = texture(np.random.default_rng(3), 64)
    assert kind in TEXTURES
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8


def test_noise_and_palette_have_their_ranges() -> None:
    noise = fractal(np.random.default_rng(0), 32)
    assert (noise.min(), noise.max()) == (0, 1)
    assert palette(np.random.default_rng(0)).shape == (256, 3)


@needs_font
def test_a_scene_depends_on_its_split_and_number_alone() -> None:
    scene, same = draw("heldout", 7, objects=3), draw("heldout", 7, objects=3)
    assert np.array_equal(scene.image, same.image)
    assert not np.array_equal(scene.image, draw("examples", 7, objects=3).image)
    cover = np.zeros((224, 224), int)
    for item in scene.objects:
        left, top, right, bottom = item.box
        assert item.mask[top:bottom, left:right].sum() == item.mask.sum() > 0
        assert np.abs(scene.image[item.mask].mean(0) - item.colour).max() < 1
        cover += item.mask
    assert cover.max() == 1, "each pixel belongs to one object at most"


@needs_font
def test_consecutive_scenes_cycle_through_the_classes() -> None:
    assert [draw("heldout", n).objects[0].label for n in range(3)] == [0, 1, 2]
    assert draw("heldout", len(LABELS)).objects[0].label == 0


@needs_font
def test_a_video_depends_on_its_number_alone_and_its_classes_show_the_object() -> None:
    video, same = MotionVideo("heldout", 16, 64), MotionVideo("heldout", 16, 64)
    frames, classes = video.frames(4)
    assert np.array_equal(frames, same.frames(4)[0])
    assert (frames.shape, classes.shape) == ((4, 64, 64, 3), (4, 64, 64))
    assert video.motion == 16 % len(NAMES)
    assert set(np.unique(classes)) == {0, video.label + 1}
