"""Clicks as clients send them: `points=120,80;40,10,0`, or the key "points" of a JSON body."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import BadRequest
from foveate.core.point_prompts import MAX_POINTS, Point
from foveate.gateway.media.tiling import Box, Tile

FORM = "points are x,y or x,y,label with label 1 on the object and 0 off it, and ; between them"
_NUMBER = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_LARGEST = 1e7


@dataclass(frozen=True, slots=True)
class Click:
    """A point of the upright picture, in pixels from its upper left corner."""

    x: float
    y: float
    on: bool
    """On the object that is meant; False: on something else."""


def read_points(text: str | None) -> tuple[Click, ...]:
    """Those of the query; none where it has none. Raises BadRequest."""
    if text is None:
        return ()
    if text.count(";") >= MAX_POINTS:
        raise BadRequest(f"at most {MAX_POINTS} points are taken")
    return _checked([_read(part.split(",")) for part in text.split(";")])


def points_of(told: Any) -> tuple[Click, ...]:
    """Those of a JSON body, as in [[120, 80], [40, 10, 0]]. Raises BadRequest."""
    if not isinstance(told, list):
        raise BadRequest('points are a list of lists, as in "points": [[120, 80], [40, 10, 0]]')
    if len(told) > MAX_POINTS:
        raise BadRequest(f"at most {MAX_POINTS} points are taken")
    found = []
    for point in told:
        numbers = point if isinstance(point, list) else []
        if not all(type(number) in (int, float) and 0 <= number < _LARGEST for number in numbers):
            raise BadRequest("points are numbers of pixels, from 0 on")
        found.append(_click(numbers))
    return _checked(found)


def _read(parts: Sequence[str]) -> Click:
    if not all(_NUMBER.fullmatch(part.strip()) for part in parts):
        raise BadRequest(FORM)
    return _click([float(part) for part in parts])


def _click(numbers: Sequence[float]) -> Click:
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise BadRequest(FORM)
    return Click(numbers[0], numbers[1], len(numbers) == 2 or numbers[2] == 1)


def _checked(clicks: Sequence[Click]) -> tuple[Click, ...]:
    if not any(click.on for click in clicks):
        raise BadRequest("at least one point must be on the object, with label 1 or none")
    return tuple(clicks)


def window_of(clicks: Sequence[Click], windows: Sequence[Tile], size: tuple[int, int]) -> int:
    """The number of the window that answers: its core holds the first click on the object.

    size: width and height of the picture. Raises BadRequest for a click that is not in it.
    """
    for click in clicks:
        if not (click.x < size[0] and click.y < size[1]):
            at, whole = f"{click.x:g},{click.y:g}", f"{size[0]} x {size[1]}"
            raise BadRequest(f"the point {at} is outside the picture, which is {whole} pixels")
    first = next(click for click in clicks if click.on)
    return next(number for number, window in enumerate(windows) if _inside(first, window.core))


def within_box(clicks: Sequence[Click], box: Box) -> tuple[Point, ...]:
    """The clicks that lie in a part of the picture, in 0..1 of it; the others tell nothing about it."""
    left, top, right, bottom = box
    return tuple(
        Point((click.x - left) / (right - left), (click.y - top) / (bottom - top), click.on)
        for click in clicks
        if _inside(click, box)
    )


def _inside(click: Click, box: Box) -> bool:
    left, top, right, bottom = box
    return left <= click.x < right and top <= click.y < bottom
