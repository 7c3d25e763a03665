"""Points of a request: `points=120,80;40,10,0` in the query or a form, or the key "points" of a JSON body."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import BadRequest
from foveate.core.point_prompts import MAX_POINTS, Point
from foveate.gateway.media.tiling import Box, Tile

BAD_POINT = (
    "points are x,y or x,y,label, separated by semicolons; label is 1 on the object and 0 elsewhere,"
    " as in points=120,80;40,10,0"
)
TOO_MANY_POINTS = f"a request has at most {MAX_POINTS} points"
_NUMBER = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_MAX_COORDINATE = 1e7
"""Exclusive. No image is this large; the limit keeps the numbers finite."""


@dataclass(frozen=True, slots=True)
class Click:
    """A point of the upright image, in pixels from its upper left corner."""

    x: float
    y: float
    positive: bool
    """On the object; False: on something else."""


def read_points(value: Any) -> tuple[Click, ...]:
    """The points as text, as in 120,80;40,10,0, or from JSON, as in [[120, 80], [40, 10, 0]].

    Raises BadRequest.
    """
    if not isinstance(value, str):
        return points_of(value)
    if value.count(";") >= MAX_POINTS:
        raise BadRequest(TOO_MANY_POINTS)
    return _with_positive([_parse(point.split(",")) for point in value.split(";")])


def points_of(value: Any) -> tuple[Click, ...]:
    """The points of a parsed JSON body, as in [[120, 80], [40, 10, 0]]. Raises BadRequest."""
    if not isinstance(value, list):
        raise BadRequest('points are a list of lists, as in "points": [[120, 80], [40, 10, 0]]')
    if len(value) > MAX_POINTS:
        raise BadRequest(TOO_MANY_POINTS)
    clicks = []
    for point in value:
        numbers = point if isinstance(point, list) else []
        if not all(type(number) in (int, float) and 0 <= number < _MAX_COORDINATE for number in numbers):
            raise BadRequest("the coordinates of points are numbers of pixels, 0 or above")
        clicks.append(_click(numbers))
    return _with_positive(clicks)


def _parse(parts: Sequence[str]) -> Click:
    if not all(_NUMBER.fullmatch(part.strip()) for part in parts):
        raise BadRequest(BAD_POINT)
    return _click([float(part) for part in parts])


def _click(numbers: Sequence[float]) -> Click:
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise BadRequest(BAD_POINT)
    return Click(float(numbers[0]), float(numbers[1]), len(numbers) == 2 or numbers[2] == 1)


def _with_positive(clicks: Sequence[Click]) -> tuple[Click, ...]:
    """The clicks, at least one of which is on the object. Raises BadRequest."""
    if not any(click.positive for click in clicks):
        raise BadRequest("at least one point must be on the object: leave its label out, or make it 1")
    return tuple(clicks)


def tile_of(clicks: Sequence[Click], tiles: Sequence[Tile], size: tuple[int, int]) -> int:
    """The number of the tile that answers: its core holds the first click on the object.

    size: width and height of the upright image. Raises BadRequest for a click outside the image.
    """
    width, height = size
    for click in clicks:
        if not (click.x < width and click.y < height):
            raise BadRequest(
                f"the point {click.x:g},{click.y:g} is outside the image, which is {width} x {height} pixels"
            )
    first = next(click for click in clicks if click.positive)
    return next(number for number, tile in enumerate(tiles) if _inside(first, tile.core))


def within_box(clicks: Sequence[Click], box: Box) -> tuple[Point, ...]:
    """The clicks inside a box of the image, as shares of the box in 0..1; the others are left out."""
    left, top, right, bottom = box
    return tuple(
        Point((click.x - left) / (right - left), (click.y - top) / (bottom - top), click.positive)
        for click in clicks
        if _inside(click, box)
    )


def _inside(click: Click, box: Box) -> bool:
    left, top, right, bottom = box
    return left <= click.x < right and top <= click.y < bottom
