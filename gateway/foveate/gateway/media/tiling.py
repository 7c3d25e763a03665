"""Where a model looks at a picture that it is to name every pixel of: all of it at once, or in tiles."""

import itertools
import math
from dataclasses import dataclass

TILE = 1024
"""Pixels along a side past which one window is not enough: objects would get too small in it."""
MOST = 4
"""Windows in a row or a column, however large the picture is."""
LONGEST = 1.5
"""How much longer than the other a side of a window may be, before the model sees things out of shape."""
OVERLAP = 1 / 8
"""Of a window, what it shares with the next one."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, right and bottom exclusive."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture that the model sees as one."""

    box: Box
    core: Box
    """The part of it for which it answers: cores tile the picture, meeting in the middle of overlaps."""


def tiles(width: int, height: int) -> tuple[Tile, ...]:
    """Windows over a picture, row by row."""
    columns, rows = (min(MOST, math.ceil(side / TILE)) for side in (width, height))
    while width / columns > LONGEST * height / rows and columns < MOST:
        columns += 1
    while height / rows > LONGEST * width / columns and rows < MOST:
        rows += 1
    across, down = _spans(width, columns), _spans(height, rows)
    return tuple(
        Tile((x[0], y[0], x[1], y[1]), (x[2], y[2], x[3], y[3])) for y, x in itertools.product(down, across)
    )


def _spans(length: int, count: int) -> list[tuple[int, int, int, int]]:
    """Start and end of each of so many windows along a side, and of its core."""
    size = length / (count - (count - 1) * OVERLAP)
    starts = [round(i * size * (1 - OVERLAP)) for i in range(count)]
    ends = [min(length, math.ceil(start + size)) for start in starts]
    ends[-1] = length
    seams = [0, *((starts[i + 1] + ends[i]) // 2 for i in range(count - 1)), length]
    return [(starts[i], ends[i], seams[i], seams[i + 1]) for i in range(count)]
