"""Tiles and whole images: what is decoded into them, upright."""

import numpy as np
import pytest
from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.image_tiles import decode_tiles, decode_whole
from tests.support.media_samples import BLUE, RED, encode, exif, red_corner, scene

SQUASH = InputSpec(1.0, "squash", "bilinear")


def test_a_small_image_is_one_tile() -> None:
    data = encode(scene(320, 240), "PNG")
    tiled = decode_tiles(data, InputSpec(), 64, 10**6)
    assert tiled.size == (320, 240)
    assert np.array_equal(tiled.pixels[0], decode_image(data, InputSpec(1.0, "squash"), 64, 10**6))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_tiles_show_their_boxes(kind: str) -> None:
    image = scene(2600, 1400)
    options = {"quality": 95} if kind == "JPEG" else {}
    tiled = decode_tiles(encode(image, kind, **options), SQUASH, 96, 10**7)
    assert len(tiled.tiles) == len(tiled.pixels) == 6
    for tile, pixels in zip(tiled.tiles, tiled.pixels, strict=True):
        expected = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR, tile.box))
        assert abs(pixels.astype(int) - expected).mean() < (1 if kind == "PNG" else 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(96, 64), (2400, 1000)])
def test_tiles_and_whole_images_are_upright(orientation: int, size: tuple[int, int]) -> None:
    data = encode(red_corner(orientation, size), "JPEG", quality=95, exif=exif(orientation))
    tiled = decode_tiles(data, SQUASH, 32, 10**7)
    whole = np.asarray(decode_whole(data, 10**7))
    assert tiled.size == whole.shape[1::-1] == (size if orientation < 5 else size[::-1])
    for tile, pixels in zip(tiled.tiles, tiled.pixels, strict=True):
        left, top, right, bottom = tile.box
        part = Image.fromarray(whole[top:bottom, left:right]).resize((32, 32), Image.Resampling.BILINEAR)
        assert abs(pixels.astype(int) - np.asarray(part)).mean() < 4
    rows, columns = whole.shape[:2]
    assert abs(whole[rows // 4, columns // 4].astype(int) - RED).max() < 20
    assert abs(whole[rows // 4, 3 * columns // 4].astype(int) - BLUE).max() < 20
