"""Tiles of an image: they cover it, overlap, and have a bounded shape and number."""

import numpy as np
import pytest

from foveate.gateway.media.tiling import MAX_ASPECT_RATIO, MAX_TILES_PER_SIDE, TILE, tiles

SIZES = [(1, 1), (640, 480), (480, 640), (1024, 1024), (1025, 1024), (4000, 3000), (9000, 500), (3, 2000)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_cores_cover_the_image_without_overlap(width: int, height: int) -> None:
    covered = np.zeros((height, width), int)
    image_tiles = tiles(width, height)
    assert len(image_tiles) <= MAX_TILES_PER_SIDE**2
    for tile in image_tiles:
        (left, top, right, bottom), core = tile.box, tile.core
        covered[core[1] : core[3], core[0] : core[2]] += 1
        assert 0 <= left <= core[0] < core[2] <= right <= width
        assert 0 <= top <= core[1] < core[3] <= bottom <= height
    assert (covered == 1).all()


def test_the_number_and_shape_of_tiles_follow_the_image() -> None:
    assert [len(tiles(*size)) for size in ((640, 480), (TILE, TILE), (1000, 400))] == [1, 1, 2]
    for tile in tiles(3000, 2000):
        left, top, right, bottom = tile.box
        assert right - left <= 1.2 * TILE
        assert 1 / MAX_ASPECT_RATIO <= (right - left) / (bottom - top) <= MAX_ASPECT_RATIO
    neighbours = tiles(2000, 1000)
    assert neighbours[0].box[2] > neighbours[1].box[0], "they overlap"
