"""The text of an answer as its tokens arrive."""

import random
from functools import cache

import pytest

from foveate.models.vlm.text_stream import TextStream
from foveate.models.vlm.tokenizer import END, IMAGE, ChatTokenizer
from tests.support import chat_models


@cache
def words() -> ChatTokenizer:
    return chat_models.tokenizer()


def pieces(tokens: list[int], *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(words(), stop)
    got = [stream.push(token) for token in tokens]
    return [*got, stream.end()], stream


TEXTS = ("what is left of the fox?", "naïve café ¿qué?", "日本 🦊🦊 x", "  spaced   out \n lines ", "é", "")


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_text(text: str) -> None:
    got, stream = pieces(words().encode(text))
    assert "".join(got) == stream.text == text.strip()
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in got)


def test_a_character_comes_whole() -> None:
    tokens = words().encode("🦊")
    assert len(tokens) > 2
    got, _ = pieces(tokens)
    assert [piece for piece in got if piece] == ["🦊"]


def test_any_tokens_give_what_the_tokenizer_decodes() -> None:
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(len(words())) for _ in range(rng.randint(1, 12))]
        got, stream = pieces(tokens)
        assert "".join(got) == stream.text == words().decode(tokens)


def test_an_incomplete_character_is_replaced_at_the_end() -> None:
    got, _ = pieces(words().encode("a 🦊")[:-1])
    assert got[-1] == " \N{REPLACEMENT CHARACTER}"


def test_marks_are_no_text() -> None:
    got, _ = pieces([IMAGE, *words().encode("fox"), END])
    assert "".join(got) == "fox"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("left",), "what is"),
        (("of the", "is"), "what"),
        (("t of t",), "what is lef"),
        (("what",), ""),
        (("fox!", "fix"), "what is left of the fox?"),
        (("?",), "what is left of the fox"),
        ((" ",), "what"),
        ((" what", "\n"), "what is left of the fox?"),
    ],
)
def test_the_answer_ends_before_a_stop_text(stop: tuple[str, ...], expected: str) -> None:
    got, stream = pieces(words().encode("what is left of the fox?"), *stop)
    assert "".join(got) == stream.text == expected
    assert stream.stopped is (expected != "what is left of the fox?")


def test_text_is_held_back_while_a_stop_text_may_begin() -> None:
    stream = TextStream(words(), ("left!",))
    got = [stream.push(token) for token in words().encode("what is left")]
    assert "".join(got) == "what is"
    assert stream.push(words().tokenizer.token_to_id("?")) == " left?"
