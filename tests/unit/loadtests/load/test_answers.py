"""Parsing the answers of servers."""

import pytest

from foveate.core.errors import SetupError
from loadtests.load.answers import ParsedAnswer, foveate, parser


def test_all_but_the_label_is_optional() -> None:
    assert foveate(b'{"predictions": [{"label": "fox"}]}') == ParsedAnswer("fox")
    full = foveate(
        b'{"predictions": [{"label": "fox"}, {"label": "cat"}], "compute": {"rung": "full", "quality": 1.0},'
        b'"timings_ms": {"queue": 2.5}}'
    )
    assert full == ParsedAnswer("fox", "full", 1.0, {"queue": 2.5})


def test_a_parser_is_imported_by_name() -> None:
    assert parser("loadtests.load.answers:foveate") is foveate
    with pytest.raises(SetupError, match=r"there is no parser 'no\.such:thing'"):
        parser("no.such:thing")
