"""The exception tree: each error has a status code and a closed set of metric labels."""

from collections.abc import Iterator

import pytest

from foveate.core.errors import BadRequest, FoveateError, Overloaded, TooLate, Unavailable


def subclasses(kind: type[FoveateError]) -> Iterator[type[FoveateError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


ERRORS = [kind for kind in subclasses(FoveateError) if kind.__module__ == "foveate.core.errors"]


@pytest.mark.parametrize("kind", ERRORS)
def test_the_status_code_fits_the_outcome(kind: type[FoveateError]) -> None:
    assert kind.outcome in ("failed", "invalid", "refused", "expired", "cancelled")
    assert issubclass(kind, BadRequest) == (kind.outcome == "invalid")
    assert issubclass(kind, Unavailable) == (kind.outcome == "refused")
    if kind.outcome == "invalid":
        assert 400 <= kind.status < 429
    if kind.outcome == "refused":
        assert kind.status in (429, 503)
    assert kind.__doc__
    assert kind.title[0].isupper()


def test_the_message_is_for_the_client() -> None:
    error = BadRequest("x-priority must be a whole number")
    assert str(error) == error.detail == "x-priority must be a whole number"


def test_a_refusal_says_when_to_retry_and_why() -> None:
    assert Unavailable("later").retry_after_s == 1.0
    assert TooLate("later", 2.5).retry_after_s == 2.5
    assert (Unavailable.reason, Overloaded.reason, TooLate.reason) == (
        "unavailable",
        "queue_full",
        "deadline",
    )
