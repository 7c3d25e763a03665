"""The record of a chat: times of its tokens, its deadline for the first one, and right answers."""

import pytest

from loadtests.load.answers import StreamedText
from loadtests.load.chat_answers import openai_stream
from loadtests.load.chat_records import ChatRecord, is_right
from loadtests.load.records import EndKind, Exchange, evaluate
from tests.support.chat_streams import event, piece, stream

CHAT = ChatRecord("name", 0, False, 8)


def test_times_count_from_the_schedule_to_the_first_text_and_from_token_to_token() -> None:
    text = StreamedText((10, 20, 30), 3, "stop", 20, 5, 4)
    chat = CHAT.answered(1.0, [1.5, 1.6, 1.9], text)
    assert chat.first_token_s == 0.5
    assert chat.token_s == pytest.approx(0.2)
    assert chat.gap_s == pytest.approx(0.3)
    assert (chat.tokens, chat.finish, chat.cached_tokens) == (3, "stop", 5)
    single = CHAT.answered(1.0, [1.5], StreamedText((10,), 1, "length"))
    assert single.token_s is single.gap_s is None


@pytest.mark.parametrize(
    ("turn", "repeated", "place"),
    [
        (0, False, "new picture"),
        (0, True, "repeated picture"),
        (2, False, "follow-up"),
        (1, True, "follow-up"),
    ],
)
def test_the_place_of_a_chat_says_what_may_be_cached(turn: int, repeated: bool, place: str) -> None:
    assert ChatRecord("name", turn, repeated, 8).place == place


def test_case_and_a_final_period_do_not_matter() -> None:
    assert is_right(" A teacup.", "a teacup") and not is_right("teacup", "a teacup")


def received(body: bytes, first: int, first_at: float, ended: float) -> Exchange:
    parts = ((first, first_at), (len(body), ended))
    return Exchange(0, 1.0, 1.01, ended, 200, body, "", parts)


@pytest.mark.parametrize(
    ("first_token_by_s", "ended", "kind"),
    [(None, 1.9, "in time"), (0.5, 1.9, "in time"), (0.3, 1.9, "late"), (0.5, 2.1, "late")],
)
def test_an_answer_is_in_time_if_its_first_and_its_last_token_are(
    first_token_by_s: float | None, ended: float, kind: EndKind
) -> None:
    events = list(stream(["a tea", "cup."]))
    exchange = received(b"".join(events), len(events[0] + events[1]), 1.4, ended)
    chat = ChatRecord("name", 0, False, 8, first_token_by_s)
    record = evaluate(exchange, "all", 1.0, "A teacup", openai_stream, chat)
    assert (record.kind, record.correct) == (kind, True)
    assert record.chat is not None and record.chat.first_token_s == pytest.approx(0.4)


@pytest.mark.parametrize(("code", "kind"), [("deadline_exceeded", "expired"), (None, "error")])
def test_a_stream_that_ends_with_an_error_is_no_answer(code: str | None, kind: EndKind) -> None:
    body = piece("a tea") + event({"error": {"message": "too late", "code": code}})
    record = evaluate(received(body, 1, 1.4, 1.5), "all", 1.0, "a teacup", openai_stream, CHAT)
    assert (record.kind, record.correct, record.problem) == (kind, None, "too late")
    assert record.chat == CHAT
