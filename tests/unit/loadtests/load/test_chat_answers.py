"""Streams of Foveate and of other servers, whole and broken."""

import pytest

from loadtests.load.answers import UNREADABLE
from loadtests.load.chat_answers import StreamError, openai_stream
from tests.support.chat_streams import event, piece, stream


def test_a_stream_of_foveate_has_text_tokens_plan_and_timings() -> None:
    events = list(stream(["a tea", "cup."]))
    answer = openai_stream(b"".join(events))
    assert (answer.label, answer.rung, answer.quality) == ("a teacup.", "tiny@64/pool:4/fp32", 0.9)
    assert answer.timings_ms == {"queue": 2.0, "total": 500.0}
    read = answer.stream
    assert read is not None
    assert (read.tokens, read.finish, read.visual_tokens) == (3, "stop", 4)
    assert (read.prompt_tokens, read.cached_tokens) == (20, 5)
    # Up to the end of the line of each piece of text, and of the chunk with the end.
    ends = [len(b"".join(events[: n + 1])) - 1 for n in (1, 2, 3)]
    assert list(read.ends) == ends


def test_a_stream_of_a_server_that_reports_nothing_is_counted_by_its_pieces() -> None:
    body = b": comment\r\n\r\n" + b"".join([piece("four"), piece(" foxes", "length"), event(b"[DONE]")])
    answer = openai_stream(body)
    assert (answer.label, answer.rung, answer.quality, answer.timings_ms) == ("four foxes", "", None, {})
    read = answer.stream
    assert read is not None
    assert (read.tokens, read.finish, len(read.ends)) == (2, "length", 2)
    assert read.prompt_tokens is read.cached_tokens is read.visual_tokens is None


def test_an_answer_without_text_has_the_time_of_its_end() -> None:
    read = openai_stream(b"".join(stream([]))).stream
    assert read is not None and len(read.ends) == 1


@pytest.mark.parametrize(
    ("error", "problem", "expired"),
    [
        ({"message": "too late", "code": "deadline_exceeded"}, "too late", True),
        ({"message": "broken", "code": None}, "broken", False),
        ("broken", "broken", False),
    ],
)
def test_an_error_in_a_stream_is_told_apart(error: object, problem: str, expired: bool) -> None:
    with pytest.raises(StreamError) as caught:
        openai_stream(piece("a") + event({"error": error}))
    assert (caught.value.problem, caught.value.expired) == (problem, expired)


@pytest.mark.parametrize("body", [b"", b"<html>", piece("a"), b"data: {\n\n", b"data: []\n\n"])
def test_a_body_that_is_no_whole_stream_is_unreadable(body: bytes) -> None:
    with pytest.raises(UNREADABLE):
        openai_stream(body)
