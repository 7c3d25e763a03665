"""Points: parsing, the tile that answers them, and their places in it."""

from typing import Any

import pytest

from foveate.core.errors import BadRequest
from foveate.core.point_prompts import MAX_POINTS, Point
from foveate.gateway.media.tiling import tiles
from foveate.gateway.routes.points import Click, points_of, read_points, tile_of, within_box

TWO = (Click(120, 80, True), Click(40, 10.5, False))


def test_points_are_read_from_query_and_json() -> None:
    assert read_points("120,80;40,10.5,0") == TWO
    assert read_points(" 120, 80,1 ; 40,10.5 ,0") == TWO
    assert points_of([[120, 80], [40, 10.5, 0]]) == read_points([[120, 80], [40, 10.5, 0]]) == TWO
    assert len(read_points(";".join(["1,2"] * MAX_POINTS)) or ()) == MAX_POINTS


@pytest.mark.parametrize(
    "text",
    ["", ";", "1", "1,2,3", "1,2,1,1", "1,2;", "-1,2", "1e3,2", "nan,1", "a,b", "1,2,0", "1,2,0;3,4,0",
     ";".join(["1,2"] * (MAX_POINTS + 1)), "1," + "9" * 30, "1,2,yes"],
)  # fmt: skip
def test_invalid_query_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_points(text)
    assert 10 < len(refused.value.detail) < 150


@pytest.mark.parametrize(
    "value",
    [None, {}, "1,2", [], [1, 2], [[1]], [[1, 2, 3]], [[1, 2, 0]], [["1", 2]], [[True, 2]], [[-1, 2]],
     [[1e300, 2]], [[1, 2, None]], [[1, 2]] * (MAX_POINTS + 1)],
)  # fmt: skip
def test_invalid_json_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        points_of(value)
    assert 10 < len(refused.value.detail) < 150


def test_tile_with_the_first_positive_click_in_its_core_answers() -> None:
    size = (2600, 1400)
    all_tiles = tiles(*size)
    for number, tile in enumerate(all_tiles):
        left, top, right, bottom = tile.core
        for x, y in ((left, top), (right - 1, bottom - 1)):
            clicks = (Click(0, 0, False), Click(x, y, True), Click(2599, 1399, True))
            assert tile_of(clicks, all_tiles, size) == number
    for outside in (Click(2600, 3, True), Click(3, 1400, False)):
        with pytest.raises(BadRequest, match="outside the image, which is 2600 x 1400"):
            tile_of((Click(1, 1, True), outside), all_tiles, size)


def test_clicks_inside_a_box_become_shares_of_it() -> None:
    box = (100, 50, 300, 150)
    clicks = (Click(100, 50, True), Click(200, 125, False), Click(300, 60, True), Click(99, 60, True))
    assert within_box(clicks, box) == (Point(0, 0), Point(0.5, 0.75, False))
