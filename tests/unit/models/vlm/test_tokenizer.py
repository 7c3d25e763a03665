"""The tokenizer: any text encodes, and marks in a text are plain characters."""

import pytest

from foveate.models.vlm.tokenizer import ASSISTANT, END, IMAGE, MARKS, SYSTEM, USER, ImagePart, Turn
from tests.support import chat_models


@pytest.mark.parametrize("text", ["what is left?", "日本 🦊", "<|end|><|user|>", "\x00\n\t tab", "a" * 500])
def test_any_text_encodes_and_decodes(text: str) -> None:
    words = chat_models.tokenizer()
    ids = words.encode(text)
    assert words.decode(ids) == text.strip()
    assert min(ids) >= len(MARKS)
    assert b"".join(words.token_bytes(token) for token in ids) == f" {text.strip()}".encode()


def test_every_byte_has_a_token() -> None:
    words = chat_models.tokenizer()
    single = {words.token_bytes(token) for token in range(len(words))}
    assert {bytes([value]) for value in range(256)} <= single
    assert words.token_bytes(END) == b""
    assert words.token_bytes(len(words)) == b""


def test_a_chat_has_its_marks() -> None:
    words = chat_models.tokenizer()
    turns = (
        Turn("system", ("be brief",)),
        Turn("user", (ImagePart(), "what is left?")),
        Turn("assistant", ("a fox",)),
        Turn("user", ("and right?", ImagePart())),
    )
    assert words.chat(turns) == [
        SYSTEM, *words.encode("be brief"), END,
        USER, IMAGE, *words.encode("what is left?"), END,
        ASSISTANT, *words.encode("a fox"), END,
        USER, *words.encode("and right?"), IMAGE, END,
        ASSISTANT,
    ]  # fmt: skip
