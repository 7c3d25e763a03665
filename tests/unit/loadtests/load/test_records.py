"""Each exchange ends in exactly one way, and its answer is compared with the label."""

import math

import pytest

from loadtests.load.answers import foveate
from loadtests.load.records import END_KINDS, EndKind, Exchange, count_kinds, evaluate
from tests.support.load_runs import RECORDS

FOX = (
    b'{"predictions": [{"label": "fox"}], "compute": {"rung": "half", "quality": 0.9},'
    b' "timings_ms": {"queue": 1}}'
)


def exchange(status: int, ended: float = 1.1, body: bytes = b"", problem: str = "") -> Exchange:
    return Exchange(0, 1.0, 1.02, ended, status, body, problem)


@pytest.mark.parametrize(
    ("ended", "kind", "problem"),
    [
        (exchange(200, 1.2, FOX), "in time", ""),
        (exchange(200, 1.2001, FOX), "late", ""),
        (exchange(200, 1.1, b"<html>"), "error", "an answer that the parser cannot read"),
        (exchange(200, 1.1, b"[]"), "error", "an answer that the parser cannot read"),
        (exchange(200, 1.1, b'{"predictions": []}'), "error", "an answer that the parser cannot read"),
        (exchange(429), "refused", ""),
        (exchange(503), "refused", ""),
        (exchange(504), "expired", ""),
        (exchange(408), "expired", ""),
        (exchange(500), "error", "status 500"),
        (exchange(422), "error", "status 422"),
        (exchange(0, 1.1, problem="the server hung up"), "error", "the server hung up"),
        (exchange(0, math.nan, problem="no answer within 10 s"), "unanswered", "no answer within 10 s"),
    ],
)
def test_every_exchange_has_one_end_kind(ended: Exchange, kind: EndKind, problem: str) -> None:
    record = evaluate(ended, "all", 0.2, "fox", foveate)
    assert (record.kind, record.problem) == (kind, problem)
    assert record.correct is (True if kind in ("in time", "late") else None)


def test_an_answer_is_compared_with_the_label_of_the_image() -> None:
    record = evaluate(exchange(200, body=FOX), "all", 0.2, "cat", foveate)
    assert (record.correct, record.rung, record.quality) == (False, "half", 0.9)
    assert record.timings_ms == {"queue": 1}


def test_counts_include_every_end_kind() -> None:
    counts = count_kinds(RECORDS[:4])
    assert counts == {**dict.fromkeys(END_KINDS, 0), "in time": 3, "late": 1}
