"""All of a picture, upright: in windows for models that name every pixel, or at its own size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media.image import Pixels, Size, decoded, on_white, resized
from foveate.gateway.media.tiling import Tile, tiles

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by EXIF's orientation."""


@dataclass(frozen=True, slots=True)
class TiledImage:
    """A picture as windows of one size, for models that look at all of it."""

    size: Size
    """Of the upright picture."""
    tiles: tuple[Tile, ...]
    pixels: tuple[Pixels, ...]
    """(S, S, 3) for each window."""


Choice = Callable[[Sequence[Tile], Size], int]
"""The number of the window that is wanted of a picture of this size."""


def decode_tiles(
    data: bytes, spec: InputSpec, side: int, max_pixels: int, choose: Choice | None = None
) -> TiledImage:
    """The whole upright picture as square pixels (side, side, 3), in as many windows as its size asks for; or
    one of these alone, where one is chosen.

    The same pictures are read, and the same errors raised, as by `decode_image`.
    """

    def scaled(whole: Size) -> Size:
        """A window may be any of them, turned or not: the largest says how much detail is needed."""
        first = tiles(*whole)[0]
        return (
            math.ceil(side * whole[0] / (first.box[2] - first.box[0])),
            math.ceil(side * whole[1] / (first.box[3] - first.box[1])),
        )

    picture = decoded(data, scaled, max_pixels)
    width, height = size = picture.upright
    found = tiles(width, height)
    if choose is not None:
        found = (found[choose(found, size)],)
    mirrored, upended = picture.flips
    pixels = []
    for window in found:
        left, top, right, bottom = window.box
        if mirrored:
            left, right = width - right, width - left
        if upended:
            top, bottom = height - bottom, height - top
        pixels.append(resized(picture, (left, top, right, bottom), side, spec))
    return TiledImage(size, found, tuple(pixels))


def decode_whole(data: bytes, max_pixels: int) -> Image.Image:
    """The upright picture in RGB, at its own size. Read and refused as by `decode_image`."""
    picture = decoded(data, lambda whole: whole, max_pixels)
    image = on_white(picture.image)
    turn = TURNS.get(picture.orientation)
    return image if turn is None else image.transpose(turn)
