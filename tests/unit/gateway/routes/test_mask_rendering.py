"""Masks for responses: the PNG, the overlay, and the mask and class of one object."""

import io

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import ImageTooLarge
from foveate.core.outcome import ClassMaps
from foveate.gateway.media.masks import areas
from foveate.gateway.routes.mask_rendering import best_classes, object_mask, render_mask
from tests.support.features import tile_features
from tests.support.media_samples import encode, scene

WHOLE = (0, 0, 80, 80)


def corner_mask() -> np.ndarray:
    """(40, 60): class 2 in the upper left corner."""
    mask = np.zeros((40, 60), np.uint8)
    mask[:10, :20] = 2
    return mask


def test_mask_without_an_overlay_does_not_decode_the_image_again() -> None:
    mask = corner_mask()
    rendered = render_mask((60, 40), mask, areas(mask), b"never decoded", None, 1)
    assert rendered.overlay is None
    assert (np.asarray(Image.open(io.BytesIO(rendered.mask))) == mask).all()
    (area,) = rendered.areas
    assert (area.value, area.pixels, area.box) == (2, 200, (0, 0, 20, 10))


@pytest.mark.parametrize("overlay_format", ["PNG", "JPEG"])
def test_overlay_has_the_requested_format_and_colours_only_the_mask(overlay_format: str) -> None:
    image, mask = scene(60, 40), corner_mask()
    rendered = render_mask((60, 40), mask, areas(mask), encode(image, "PNG"), overlay_format, 10_000)
    blended = Image.open(io.BytesIO(rendered.overlay or b""))
    assert (blended.format, blended.size) == (overlay_format, (60, 40))
    if overlay_format == "PNG":
        changed = (np.asarray(blended) != np.asarray(image)).any(-1)
        assert not changed[mask == 0].any()
        assert changed[mask == 2].mean() > 0.9


def test_overlay_respects_the_pixel_limit() -> None:
    mask, data = corner_mask(), encode(scene(60, 40), "PNG")
    with pytest.raises(ImageTooLarge):
        render_mask((60, 40), mask, areas(mask), data, "PNG", 100)


def test_object_gets_the_class_of_most_of_its_area() -> None:
    classes = np.zeros((8, 8), np.uint8)
    classes[:, :3], classes[:, 3] = 3, 1
    class_maps = tile_features(8, classes).maps

    def label_of(columns: slice) -> int | None:
        logits = np.full((8, 8), -4, np.float16)
        logits[:, columns] = 4
        object_maps = ClassMaps((0, 1), np.stack([np.zeros_like(logits), logits]))
        _, (area,) = object_mask((80, 80), WHOLE, object_maps, class_maps)
        assert area.value == 1
        return area.label_index

    assert (label_of(slice(0, 4)), label_of(slice(3, 4)), label_of(slice(2, 8))) == (2, 0, None)


def test_empty_mask_has_no_area() -> None:
    class_maps, tied = tile_features().maps, np.zeros((8, 8), np.float16)
    assert object_mask((80, 80), WHOLE, ClassMaps((0, 1), np.stack([tied, tied])), class_maps)[1] == []
    background = ClassMaps((0,), np.zeros((1, 8, 8), np.float16))
    mask, object_areas = object_mask((80, 80), WHOLE, background, class_maps)
    assert mask.getbbox() is None
    assert not object_areas


def test_object_that_fills_its_tile_covers_the_box_and_nothing_else() -> None:
    everywhere = ClassMaps((1,), np.zeros((1, 8, 8), np.float16))
    mask, (area,) = object_mask((80, 60), (40, 10, 80, 60), everywhere, tile_features().maps)
    assert mask.getbbox() == area.box == (40, 10, 80, 60)
    assert area.pixels == 40 * 50


def test_best_class_at_each_position() -> None:
    scores = np.array([[[1, 0]], [[0, 2]], [[0.5, 1]]], np.float16)
    assert best_classes(ClassMaps((0, 4, 7), scores)).tolist() == [[0, 4]]
