"""Masks: class maps to a mask, files, overlays and areas."""

import io

import numpy as np
import pytest
from PIL import Image

from foveate.core.outcome import ClassMaps
from foveate.gateway.media import masks
from foveate.gateway.media.masks import PALETTE, areas, assemble_mask, encode_mask, overlay
from foveate.gateway.media.tiling import tiles
from tests.support.media_samples import BLUE


def maps(classes: tuple[int, ...], best: np.ndarray) -> ClassMaps:
    """Class maps in which `best` (h, w) holds the index of the best class at each position."""
    return ClassMaps(
        classes, np.stack([(best == i) * 4.0 - 2.0 for i in range(len(classes))]).astype(np.float16)
    )


def test_scores_are_resized_before_classes_are_compared() -> None:
    best = np.zeros((4, 4), int)
    best[:, 2:] = 1
    (tile,) = tiles(400, 300)
    mask = assemble_mask((400, 300), [tile], [maps((0, 7), best)])
    assert mask.shape == (300, 400)
    assert (mask[:, :199] == 0).all()
    assert (mask[:, 201:] == 7).all()
    # The same as all scores resized at once, without strips.
    best = np.random.default_rng(0).integers(0, 3, (14, 14))
    class_maps = maps((0, 3, 9), best)
    whole = [
        np.asarray(Image.fromarray(s.astype(np.float32)).resize((400, 300), Image.Resampling.BILINEAR))
        for s in class_maps.scores
    ]
    assert np.array_equal(
        assemble_mask((400, 300), [tile], [class_maps]), np.array([0, 3, 9])[np.argmax(whole, 0)]
    )


def test_strips_do_not_change_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    class_maps = maps((0, 3, 9), np.random.default_rng(0).integers(0, 3, (14, 14)))
    (tile,) = tiles(400, 300)
    whole = assemble_mask((400, 300), [tile], [class_maps])
    monkeypatch.setattr(masks, "STRIP_BYTES", 4 * 3 * 400 * 7)
    assert (assemble_mask((400, 300), [tile], [class_maps]) != whole).mean() < 1e-3


def test_each_tile_decides_its_core() -> None:
    image_tiles = tiles(2400, 1000)
    assert len(image_tiles) == 3
    tile_maps = [ClassMaps((k + 1,), np.zeros((1, 8, 8), np.float16)) for k in range(3)]
    mask = assemble_mask((2400, 1000), image_tiles, tile_maps)
    for k, tile in enumerate(image_tiles):
        left, top, right, bottom = tile.core
        assert (mask[top:bottom, left:right] == k + 1).all()


def test_a_mask_survives_its_png() -> None:
    mask = np.random.default_rng(0).integers(0, 105, (60, 80)).astype(np.uint8)
    image = Image.open(io.BytesIO(encode_mask(mask)))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), PALETTE[mask])


def test_every_class_has_its_own_colour() -> None:
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 256
    assert PALETTE[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_overlay_keeps_the_background(kind: str) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :32] = 2
    overlaid = np.asarray(Image.open(io.BytesIO(overlay(Image.new("RGB", (64, 48), BLUE), mask, kind))))
    assert abs(overlaid[:, 40:].astype(int) - BLUE).max() <= (0 if kind == "PNG" else 8)
    assert overlaid[:, :24, 1].mean() > BLUE[1] + 20


def test_areas_have_counts_and_boxes_the_largest_first() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:4, 5:8] = 9
    mask[6:10, 0:20] = 4
    class_areas = areas(mask)
    assert [(area.value, area.pixels, area.box) for area in class_areas] == [
        (4, 80, (0, 6, 20, 10)),
        (9, 6, (5, 2, 8, 4)),
    ]
    assert areas(np.zeros((3, 3), np.uint8)) == []


@pytest.mark.parametrize("size", [(480, 480), (37, 91), (1, 1)])
def test_a_threshold_on_rounded_logits_equals_the_exact_one(size: tuple[int, int]) -> None:
    y, x = np.mgrid[:56, :56]
    margin = (6 - ((x - 28) ** 2 + (y - 25) ** 2) / 30 + 3 * np.sin(x)).astype(np.float16)
    exact = masks.resize_scores(margin, size)
    rounded = np.asarray(masks.threshold_mask(margin, size)) > 0
    certain = np.abs(exact) > 2 / masks.LEVELS_PER_LOGIT
    assert np.array_equal(rounded[certain], exact[certain] > 0)
    assert (rounded == (exact > 0)).mean() > 0.97


def test_a_mask_of_two_values_takes_one_bit_a_pixel() -> None:
    array = np.zeros((40, 60), np.uint8)
    array[10:20, 5:30] = 1
    same = encode_mask(array), encode_mask(Image.fromarray(array))
    assert same[0] == same[1]
    assert same[0][24] == 1  # bits, in the header
    array[0, 0] = 2
    assert encode_mask(array)[24] == 8
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_mask(array)))), array)


def test_strips_give_the_same_overlay_and_areas_as_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (60, 40, 3), np.uint8))
    mask = random.integers(0, 4, (60, 40)).astype(np.uint8)
    mask[10:20] = 0
    whole = overlay(image.copy(), mask, "PNG"), areas(mask)
    monkeypatch.setattr(masks, "STRIP_BYTES", 40 * 8 * 3)
    assert (overlay(image.copy(), mask, "PNG"), areas(mask)) == whole
    colours = Image.fromarray(PALETTE[mask])
    opacity = Image.fromarray(np.where(mask > 0, np.uint8(255 * masks.OPACITY), np.uint8(0)))
    expected = np.asarray(Image.composite(colours, image, opacity))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole[0]))), expected)
