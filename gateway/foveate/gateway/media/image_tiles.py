"""Decode all of an upright image: as tiles for models that label every pixel, or at its own size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media.image import Pixels, decode_stored, resize_box
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.tiling import Tile, tiles

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by EXIF's orientation."""


@dataclass(frozen=True, slots=True)
class TiledImage:
    """An image as tiles of one size, for models that process all of it."""

    size: Size
    """Width and height of the upright image."""
    tiles: tuple[Tile, ...]
    pixels: tuple[Pixels, ...]
    """(S, S, 3) for each tile."""


TileSelector = Callable[[Sequence[Tile], Size], int]
"""Gives the index of one tile, from all tiles and the size of the image."""


def decode_tiles(
    data: bytes, spec: InputSpec, side: int, max_pixels: int, select: TileSelector | None = None
) -> TiledImage:
    """The whole upright image as tiles of (side, side, 3) pixels, as many as its size requires.

    select: chooses one tile, and only that tile is made; None makes all. Raises the errors of
    `decode_image`.
    """

    def resized_size(whole: Size) -> Size:
        """The first tile is the largest one, so it decides how much detail is needed."""
        first = tiles(*whole)[0]
        return (
            math.ceil(side * whole[0] / (first.box[2] - first.box[0])),
            math.ceil(side * whole[1] / (first.box[3] - first.box[1])),
        )

    image = decode_stored(data, resized_size, max_pixels)
    width, height = size = image.upright_size
    selected = tiles(width, height)
    if select is not None:
        selected = (selected[select(selected, size)],)
    flip_x, flip_y = image.flips
    pixels = []
    for tile in selected:
        left, top, right, bottom = tile.box
        if flip_x:
            left, right = width - right, width - left
        if flip_y:
            top, bottom = height - bottom, height - top
        pixels.append(resize_box(image, (left, top, right, bottom), side, spec))
    return TiledImage(size, selected, tuple(pixels))


def decode_whole(data: bytes, max_pixels: int) -> Image.Image:
    """The upright image in RGB at its own size. Raises the errors of `decode_image`."""
    stored = decode_stored(data, lambda whole: whole, max_pixels)
    image = stored.in_srgb(stored.image)
    transposition = TRANSPOSITIONS.get(stored.orientation)
    return image if transposition is None else image.transpose(transposition)
