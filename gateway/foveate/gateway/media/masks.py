"""From class maps to pictures: the mask at the input's size, and the input with the mask on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.outcome import ClassMaps
from foveate.gateway.media.tiling import Tile

Mask = NDArray[np.uint8]
"""(H, W): 0 the background, k the model's label k - 1."""

STRIP_BYTES = 16 * 2**20
"""Of scores that are held at the size of the picture at a time."""
OPACITY = 0.55
"""Of the mask's colours over the picture."""


def assembled(size: tuple[int, int], windows: Sequence[Tile], maps: Sequence[ClassMaps]) -> Mask:
    """Each pixel's best class: scores are scaled up to the picture, strip by strip, and then compared.

    size: width and height of the picture; each window with the maps of what was seen in it.
    """
    mask = np.zeros(size[::-1], np.uint8)
    for window, found in zip(windows, maps, strict=True):
        left, top, right, bottom = window.core
        rows = max(1, STRIP_BYTES // (4 * len(found.classes) * (right - left)))
        for first in range(top, bottom, rows):
            last = min(first + rows, bottom)
            mask[first:last, left:right] = _best(window, found, (left, first, right, last))
    return mask


def _best(window: Tile, maps: ClassMaps, part: tuple[int, int, int, int]) -> Mask:
    """The best class of each pixel of a part of a window, in the picture's coordinates."""
    classes = np.array(maps.classes, np.uint8)
    left, top, right, bottom = window.box
    _, rows, columns = maps.scores.shape
    x, y = columns / (right - left), rows / (bottom - top)
    box = (part[0] - left) * x, (part[1] - top) * y, (part[2] - left) * x, (part[3] - top) * y
    size = part[2] - part[0], part[3] - part[1]
    best = np.full(size[::-1], classes[0])
    if len(classes) == 1:
        return best
    highest = scaled(maps.scores[0], size, box).copy()
    for value, scores in zip(classes[1:], maps.scores[1:], strict=True):
        own = scaled(scores, size, box)
        np.copyto(best, value, where=own > highest)
        np.maximum(highest, own, out=highest)
    return best


def scaled(
    scores: NDArray[np.float16], size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.float32]:
    """Scores (h, w), or a box of them, at this width and height."""
    image = Image.fromarray(scores.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))


STEPS = 4
"""To one of a logit, where scores are told apart in steps, up to 32 logits either way: half a step moves an
edge by a fraction of a pixel."""


def above(margin: NDArray[np.float16], size: tuple[int, int]) -> Image.Image:
    """Where logits (h, w) are above 0 at this width and height: 1 there, 0 elsewhere. In steps, for a picture
    of bytes is scaled in a fraction of the time."""
    levels = np.clip(STEPS * margin.astype(np.float32) + 127, 0, 255).round().astype(np.uint8)
    grown = Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR)
    return grown.point([0] * 128 + [1] * 128)


def palette() -> NDArray[np.uint8]:
    """A colour for each class (256, 3), neighbours far apart: bits of the class's number, the lowest first,
    become the highest of red, green and blue in turn, as in the masks of PASCAL VOC."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


PALETTE = palette()


def png(mask: Mask | Image.Image) -> bytes:
    """An indexed PNG whose pixel values are the classes."""
    image = mask.copy() if isinstance(mask, Image.Image) else Image.fromarray(mask)
    image.putpalette(PALETTE.tobytes())
    bits = 8 if any(image.histogram()[2:]) else 1  # what takes an eighth of the room takes half the time
    return _encoded(image, "PNG", bits=bits)


def overlay(picture: Image.Image, mask: Mask | Image.Image, kind: str) -> bytes:
    """The picture with the mask's colours on it, as PNG or JPEG; the background stays as it is."""
    mask = np.asarray(mask)
    colours = Image.fromarray(PALETTE[mask])
    opacity = Image.fromarray(np.where(mask > 0, np.uint8(255 * OPACITY), np.uint8(0)))
    return _encoded(Image.composite(colours, picture, opacity), kind)


def _encoded(image: Image.Image, kind: str, **more: int) -> bytes:
    out = BytesIO()
    image.save(out, kind, **({"quality": 88} if kind == "JPEG" else {"compress_level": 4}), **more)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class ClassArea:
    """A class that a mask shows."""

    value: int
    shows: int | None
    """The model's label for it; None: it is none of those."""
    pixels: int
    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels, right and bottom exclusive."""


@dataclass(frozen=True, slots=True)
class RenderedMask:
    """All that an answer shows of a mask."""

    size: tuple[int, int]
    """Width and height."""
    mask: bytes
    """An indexed PNG."""
    overlay: bytes | None
    """The picture with the mask on it, where it was asked for."""
    areas: list[ClassArea]


def areas(mask: Mask) -> list[ClassArea]:
    """The classes of a mask, the largest first, the background left out."""
    counts = np.bincount(mask.ravel(), minlength=256)
    order = (np.argsort(-counts[1:], kind="stable") + 1).tolist()
    return [
        ClassArea(value, value - 1, int(counts[value]), box_of(mask == value))
        for value in order
        if counts[value]
    ]


def box_of(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
