"""Class maps of a model to image files: the mask at the image's size, and the image with the mask on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.outcome import ClassMaps
from foveate.gateway.media.tiling import Box, Tile

ClassMask = NDArray[np.uint8]
"""(H, W): 0 is the background, k the model's label k - 1."""

STRIP_BYTES = 16 * 2**20
"""Bytes of scores, or of other intermediate results, that are held at the size of the image at one time."""
OPACITY = 0.55
"""Opacity of the mask's colours over the image."""
LEVELS_PER_LOGIT = 4
"""Resolution of logits stored as bytes, which covers 32 logits either way. Half a level moves an edge by a
fraction of a pixel."""


def assemble_mask(size: tuple[int, int], tiles: Sequence[Tile], maps: Sequence[ClassMaps]) -> ClassMask:
    """The best class of each pixel. Scores are resized to the image strip by strip, and then compared.

    size: width and height of the image. maps: the class maps of each tile, in the order of `tiles`.
    """
    mask = np.zeros(size[::-1], np.uint8)
    for tile, tile_maps in zip(tiles, maps, strict=True):
        left, top, right, bottom = tile.core
        rows = max(1, STRIP_BYTES // (4 * len(tile_maps.classes) * (right - left)))
        for first in range(top, bottom, rows):
            last = min(first + rows, bottom)
            mask[first:last, left:right] = _best_classes(tile, tile_maps, (left, first, right, last))
    return mask


def _best_classes(tile: Tile, maps: ClassMaps, part: Box) -> ClassMask:
    """The best class of each pixel of a part of a tile. `part` is in the image's coordinates."""
    classes = np.array(maps.classes, np.uint8)
    left, top, right, bottom = tile.box
    _, rows, columns = maps.scores.shape
    x, y = columns / (right - left), rows / (bottom - top)
    box = (part[0] - left) * x, (part[1] - top) * y, (part[2] - left) * x, (part[3] - top) * y
    size = part[2] - part[0], part[3] - part[1]
    best = np.full(size[::-1], classes[0])
    if len(classes) == 1:
        return best
    best_scores = resize_scores(maps.scores[0], size, box).copy()
    for value, scores in zip(classes[1:], maps.scores[1:], strict=True):
        class_scores = resize_scores(scores, size, box)
        np.copyto(best, value, where=class_scores > best_scores)
        np.maximum(best_scores, class_scores, out=best_scores)
    return best


def resize_scores(
    scores: NDArray[np.float16], size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.float32]:
    """Scores (h, w), or a box of them, at this width and height."""
    image = Image.fromarray(scores.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))


def threshold_mask(logits: NDArray[np.float16], size: tuple[int, int]) -> Image.Image:
    """A mask of this width and height: 1 where logits (h, w) are above 0, else 0.

    Logits are rounded to bytes first: resizing an image of bytes takes a fraction of the time.
    """
    levels = np.clip(LEVELS_PER_LOGIT * logits.astype(np.float32) + 127, 0, 255).round().astype(np.uint8)
    resized = Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR)
    return resized.point([0] * 128 + [1] * 128)


def palette() -> NDArray[np.uint8]:
    """A colour for each class: (256, 3). Neighbouring classes have very different colours.

    The bits of the class number, lowest first, become the highest bits of red, green and blue in turn, as in
    the masks of PASCAL VOC.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


PALETTE = palette()
"""(256, 3): the colour of each value of a mask."""


def encode_mask(mask: ClassMask | Image.Image) -> bytes:
    """An indexed PNG whose pixel values are the classes."""
    image = mask.copy() if isinstance(mask, Image.Image) else Image.fromarray(mask)
    image.putpalette(PALETTE.tobytes())
    bits = 8 if any(image.histogram()[2:]) else 1  # 1 bit a pixel halves the time of encoding
    return _encode(image, "PNG", bits=bits)


def overlay(image: Image.Image, mask: ClassMask | Image.Image, kind: str) -> bytes:
    """The RGB image with the mask's colours on it, as PNG or JPEG. The background is unchanged.

    Draws on `image` itself, strip by strip: a large image is never held twice.
    """
    mask = np.asarray(mask)
    rows = max(1, STRIP_BYTES // (4 * mask.shape[1]))
    for top in range(0, len(mask), rows):
        part = mask[top : top + rows]
        if part.any():
            opacity = Image.fromarray(np.where(part > 0, np.uint8(255 * OPACITY), np.uint8(0)))
            image.paste(Image.fromarray(PALETTE[part]), (0, top), opacity)
    return _encode(image, kind)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    out = BytesIO()
    image.save(out, kind, **({"quality": 88} if kind == "JPEG" else {"compress_level": 4}), **options)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class ClassArea:
    """One class in a mask."""

    value: int
    """Value of its pixels in the mask."""
    label_index: int | None
    """Index of the model's label for it; None for an object that has no label."""
    pixels: int
    box: Box


@dataclass(frozen=True, slots=True)
class RenderedMask:
    """A mask as an answer shows it."""

    size: tuple[int, int]
    """Width and height."""
    mask: bytes
    """An indexed PNG."""
    overlay: bytes | None
    """The image with the mask on it, as PNG or JPEG; None unless the request asked for it."""
    areas: list[ClassArea]
    """The classes in the mask, the largest first."""


def areas(mask: ClassMask) -> list[ClassArea]:
    """The classes in a mask, the largest first, without the background."""
    # In strips: the count makes a copy of its input with eight bytes a pixel.
    rows = max(1, STRIP_BYTES // (8 * mask.shape[1]))
    strips = (mask[top : top + rows].ravel() for top in range(0, len(mask), rows))
    counts = sum((np.bincount(strip, minlength=256) for strip in strips), np.zeros(256, np.int64))
    order = (np.argsort(-counts[1:], kind="stable") + 1).tolist()
    return [
        ClassArea(value, value - 1, int(counts[value]), box_of(mask == value))
        for value in order
        if counts[value]
    ]


def box_of(where: NDArray[np.bool_]) -> Box:
    """The smallest box around the true values of (H, W), at least one of which is true."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
