"""Labels and templates of zero-shot classification: text, lists, limits."""

from typing import Any

import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.routes.labels import MAX_CHARACTERS, MAX_LABELS, read_labels, read_template
from foveate.gateway.schemas.openapi import OPTIONS


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("cat", ("cat",)),
        ("cat,dog", ("cat", "dog")),
        (" a red car , a  dog ", ("a red car", "a  dog")),
        (r"red\, round,blue", ("red, round", "blue")),
        (r"back\\,slash", ("back\\", "slash")),
        (r"C:\dir,a\b\\", (r"C:\dir", "a\\b\\")),
        (r"\,", (",",)),
        ("naïve,日本", ("naïve", "日本")),
        (["a,b", r"c\,d"], ("a,b", r"c\,d")),
        (",".join(map(str, range(MAX_LABELS))), tuple(map(str, range(MAX_LABELS)))),
        (["x" * MAX_CHARACTERS], ("x" * MAX_CHARACTERS,)),
    ],
)
def test_labels_are_read(value: Any, labels: tuple[str, ...]) -> None:
    assert read_labels(value) == labels


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "printable text and not empty, not ''"),
        ("cat,,dog", "not empty"),
        ("cat, ", "not empty"),
        ("a\nb", "printable"),
        ("cat,dog,cat", "labels has 'cat' twice; name each class once"),
        ("cat, cat", "twice"),
        ([], "labels is empty; name at least one class"),
        ([1], "printable text"),
        ([["a"]], "printable text"),
        ([None], "printable text"),
        (5, 'a list, as in "labels"'),
        (True, 'a list, as in "labels"'),
        ({}, 'a list, as in "labels"'),
        ("x" * (MAX_CHARACTERS + 1), f"has {MAX_CHARACTERS + 1} characters; it has at most {MAX_CHARACTERS}"),
        (",".join(map(str, range(MAX_LABELS + 1))), f"at most {MAX_LABELS} labels"),
        ([str(number) for number in range(MAX_LABELS + 1)], f"at most {MAX_LABELS} labels"),
        ("," * 10**6, f"at most {MAX_LABELS} labels"),
    ],
)
def test_other_labels_are_refused(value: Any, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_labels(value)
    assert words in refused.value.detail and len(refused.value.detail) < 200


@pytest.mark.parametrize("value", ["a photo of a {}", "{}", "{}.", "{0} {}", "é {}"])
def test_templates_have_one_place(value: str) -> None:
    assert read_template(value) == value


@pytest.mark.parametrize("value", ["", "a photo", "{} {}", "{}\n", 5, None, ["{}"], "{}" + 200 * "x"])
def test_other_templates_are_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="template") as refused:
        read_template(value)
    assert len(refused.value.detail) < 200


def test_limits_are_those_of_the_document() -> None:
    assert OPTIONS["template"]["maxLength"] == MAX_CHARACTERS
    assert f"up to {MAX_LABELS} labels" in OPTIONS["labels"]["description"]
