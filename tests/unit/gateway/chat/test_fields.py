"""Values of a JSON body, one by one. The table of whole bodies is in test_request."""

import json
from typing import Any

import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.body_formats.json_body import JsonMembers, parse_members
from foveate.gateway.chat.fields import (
    plain,
    read_closed_object,
    read_items,
    read_number,
    read_text,
    read_whole,
    shown,
)


def members(value: Any) -> JsonMembers:
    return parse_members(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (False, "false"), (7, "7"), (0.5, "0.5"), ("x", "'x'"),
        ([1], "a list"),
        (JsonMembers([("a", 1)]), "an object"), ("\ud83d", r"'\ud83d'"), ("\n", r"'\n'"),
    ],
)  # fmt: skip
def test_an_error_shows_a_value_as_json_has_it(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", ["x" * 10_000, 10**2000])
def test_an_error_shows_the_beginning_of_a_long_value(value: Any) -> None:
    assert len(shown(value)) < 50


def test_an_object_is_no_list() -> None:
    assert list(read_items([], "stop")) == []
    with pytest.raises(BadRequest, match="must be a list, not an object"):
        read_items(members({}), "stop")
    with pytest.raises(BadRequest, match="must be an object, not a list"):
        read_closed_object([], "x", ())


def test_the_path_of_an_item_has_its_number() -> None:
    assert list(read_items(["a", "b"], "stop")) == [("stop[0]", "a"), ("stop[1]", "b")]


@pytest.mark.parametrize("value", [1, 1.0, 5, 5.0])
def test_whole_numbers_may_have_a_point(value: Any) -> None:
    assert type(read_whole(value, "n", 1, 5)) is int


@pytest.mark.parametrize("value", [0, 6, 1.5, True, "1", None, [], 10**500, float("inf"), float("nan")])
def test_other_values_are_no_whole_numbers(value: Any) -> None:
    with pytest.raises(BadRequest, match=r"n must be a whole number from 1 to 5, not"):
        read_whole(value, "n", 1, 5)


@pytest.mark.parametrize("value", [0, 1.1, True, "1", None, 10**500, float("inf"), float("nan")])
def test_numbers_are_in_their_range(value: Any) -> None:
    with pytest.raises(BadRequest, match="p must be a number above 0 to 1"):
        read_number(value, "p", 0, 1, above=True)


def test_text_is_what_utf8_can_encode() -> None:
    assert read_text("naïve 🦊", "x", 7) == "naïve 🦊"
    with pytest.raises(BadRequest, match=r"character 3 is the lone surrogate U\+DC00"):
        read_text("ab\udc00", "x")
    with pytest.raises(BadRequest, match="has 8 characters, and may have 7"):
        read_text("x" * 8, "x", 7)


def test_an_object_becomes_plain_unless_a_name_is_repeated() -> None:
    value = {"a": [{"b": 1}, 2], "c": None}
    assert plain(members(value)) == value
    with pytest.raises(BadRequest, match="b is given twice"):
        plain(parse_members(b'{"a": [{"b": 1, "b": 1}]}'))
