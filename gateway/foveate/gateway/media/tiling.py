"""Split a large image into overlapping tiles for models that label every pixel."""

import itertools
import math
from dataclasses import dataclass

TILE = 1024
"""Longest side of a tile in pixels, about: objects in a larger tile would become too small for the model."""
MAX_TILES_PER_SIDE = 4
"""Tiles in a row or a column at most, however large the image is."""
MAX_ASPECT_RATIO = 1.5
"""Longer side of a tile over its shorter side at most: the model sees tiles stretched to squares."""
OVERLAP = 1 / 8
"""Share of a tile that it has in common with the next one."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of an image that the model processes as one input."""

    box: Box
    core: Box
    """The part of `box` for which this tile's answer counts. The cores of all tiles cover the image without
    overlap: they meet in the middle of the tiles' overlaps."""


def tiles(width: int, height: int) -> tuple[Tile, ...]:
    """The tiles of an image of this size in pixels, row by row. A small image is one tile."""
    columns, rows = (min(MAX_TILES_PER_SIDE, math.ceil(side / TILE)) for side in (width, height))
    while width / columns > MAX_ASPECT_RATIO * height / rows and columns < MAX_TILES_PER_SIDE:
        columns += 1
    while height / rows > MAX_ASPECT_RATIO * width / columns and rows < MAX_TILES_PER_SIDE:
        rows += 1
    across, down = _spans(width, columns), _spans(height, rows)
    return tuple(
        Tile((x[0], y[0], x[1], y[1]), (x[2], y[2], x[3], y[3])) for y, x in itertools.product(down, across)
    )


def _spans(length: int, count: int) -> list[tuple[int, int, int, int]]:
    """Start and end of each of `count` tiles along a side, and start and end of its core."""
    size = length / (count - (count - 1) * OVERLAP)
    starts = [round(i * size * (1 - OVERLAP)) for i in range(count)]
    ends = [min(length, math.ceil(start + size)) for start in starts]
    ends[-1] = length
    seams = [0, *((starts[i + 1] + ends[i]) // 2 for i in range(count - 1)), length]
    return [(starts[i], ends[i], seams[i], seams[i + 1]) for i in range(count)]
