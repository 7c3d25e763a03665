"""Masks for responses: encoded as PNG, and blended over the image where the client asked for that."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.outcome import ClassMaps
from foveate.gateway.media.image_tiles import decode_whole
from foveate.gateway.media.masks import ClassArea, RenderedMask, encode_mask, overlay, threshold_mask
from foveate.gateway.media.tiling import Box


def render_mask(
    size: tuple[int, int],
    mask: NDArray[np.uint8] | Image.Image,
    class_areas: Sequence[ClassArea],
    data: bytes,
    overlay_format: str | None,
    max_pixels: int,
) -> RenderedMask:
    """The mask as PNG, with the overlay if there is one. Runs on a pool thread: it touches every pixel.

    size: width and height of the upright image. data: the encoded image. overlay_format: the image format of
    the overlay; None makes none. max_pixels: the limit of decoding the image again for the overlay.
    """
    blended = None
    if overlay_format is not None:
        blended = overlay(decode_whole(data, max_pixels), mask, overlay_format)
    return RenderedMask(size, encode_mask(mask), blended, list(class_areas))


def object_mask(
    size: tuple[int, int], box: Box, object_maps: ClassMaps, class_maps: ClassMaps
) -> tuple[Image.Image, list[ClassArea]]:
    """The mask of the whole image, 1 on the object, and the object's area; no area for an empty mask.

    size: width and height of the upright image. box: the tile of the image that the maps cover.
    object_maps: scores of class 1, the object, and class 0. class_maps: scores of the model's classes; the
    object gets the class of most of its area.
    """
    left, top, right, bottom = box
    mask = Image.new("L", size)
    if object_maps.classes == (0, 1):
        margin = object_maps.scores[1] - object_maps.scores[0]
        mask.paste(threshold_mask(margin, (right - left, bottom - top)), (left, top))
    elif object_maps.classes == (1,):
        mask.paste(1, box)
    bounds = mask.getbbox()
    if bounds is None:
        return mask, []
    classes = best_classes(class_maps)[best_classes(object_maps) == 1]
    best = int(np.bincount(classes).argmax()) if classes.size else 0
    return mask, [ClassArea(1, best - 1 if best else None, mask.histogram()[1], bounds)]


def best_classes(maps: ClassMaps) -> NDArray[np.uint8]:
    """The best class at each position of the maps: (h, w)."""
    best: NDArray[np.uint8] = np.array(maps.classes, np.uint8)[maps.scores.argmax(0)]
    return best
