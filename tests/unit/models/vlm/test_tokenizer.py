"""The tokenizer: any text encodes, and marks in a text are plain characters."""

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from foveate.core.chat import ImagePart, Turn
from foveate.core.errors import BadRequest
from foveate.models.vlm.tokenizer import ASSISTANT, END, IMAGE, MARKS, SYSTEM, USER, ChatTokenizer
from tests.support import chat_models


@pytest.mark.parametrize("text", ["what is left?", "日本 🦊", "<|end|><|user|>", "\x00\n\t tab", "a" * 500])
def test_any_text_encodes_and_decodes(text: str) -> None:
    words = chat_models.tokenizer()
    ids = words.encode(text)
    assert words.decode(ids) == text.strip()
    assert min(ids) >= len(MARKS)
    assert b"".join(words.token_bytes(token) for token in ids) == f" {text.strip()}".encode()


@pytest.mark.parametrize("text", ["\ud83e", "what \udcff?", "fox \udd8a\ud83e"])
def test_half_of_a_surrogate_pair_is_refused(text: str) -> None:
    words = chat_models.tokenizer()
    with pytest.raises(BadRequest, match=r"^the text is not valid Unicode: its character [156] is "):
        words.chat([Turn("user", (text,))])


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_text_without_characters_has_no_tokens(text: str) -> None:
    assert chat_models.tokenizer().chat([Turn("user", (text,))]) == [USER, END, ASSISTANT]


def test_settings_of_the_file_change_no_prompt() -> None:
    words = chat_models.tokenizer()
    expected = words.encode("what is left of the fox?")
    stored = Tokenizer.from_str(words.tokenizer.to_str())
    stored.enable_truncation(2)
    stored.enable_padding(length=64)
    stored.post_processor = TemplateProcessing("<|image|> $A", special_tokens=[("<|image|>", IMAGE)])
    assert ChatTokenizer(stored).encode("what is left of the fox?") == expected


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
        Turn("user", ("and", ImagePart(), "right?")),
    )
    assert words.chat(turns) == [
        SYSTEM, *words.encode("be brief"), END,
        USER, IMAGE, *words.encode("what is left?"), END,
        ASSISTANT, *words.encode("a fox"), END,
        USER, IMAGE, *words.encode("and right?"), END,
        ASSISTANT,
    ]  # fmt: skip
