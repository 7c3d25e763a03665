"""The tokenizer and the chat template of a vision-language model.

A byte-level BPE encodes any text. Marks such as <|end|> in a user's text are encoded as plain characters: a
text cannot end its turn.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from foveate.core.chat import ImagePart, Role, Turn
from foveate.core.errors import BadRequest

PAD, SYSTEM, USER, ASSISTANT, IMAGE, END = range(6)
MARKS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|image|>", "<|end|>")
"""The special tokens. Their numbers are their positions here."""

_ROLES: dict[Role, int] = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON such as "\\ud83d", and command lines that are not UTF-8, give these."""


class ChatTokenizer:
    """Encodes chats and decodes answers."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a `tokenizers.Tokenizer` whose first tokens are MARKS."""
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        # A file may hold what others did with it last, and a prompt has all of its text and nothing else.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    @classmethod
    def from_file(cls, path: Path) -> "ChatTokenizer":
        """Read a tokenizer.json of the library tokenizers."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)))

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with a space before it and none around it. An empty text has none.

        Raises BadRequest for a text with halves of surrogate pairs, which no UTF-8 text has.
        """
        text = text.strip()
        half = SURROGATE.search(text)
        if half is not None:
            raise BadRequest(
                f"the text is not valid Unicode: its character {half.start() + 1} is the lone surrogate "
                f"U+{ord(half[0]):04X}"
            )
        ids: list[int] = self.tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without marks and without the space before it."""
        return str(self.tokenizer.decode([i for i in ids if i >= len(MARKS)])).strip()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token: a part of UTF-8 text, not always whole characters. A mark has none.

        Raises KeyError for a token that is not byte-level. `checkpoint.read` refuses a tokenizer with one.
        """
        text = "" if token < len(MARKS) else self.tokenizer.id_to_token(token) or ""
        return bytes(_byte_values()[character] for character in text)

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of a chat, up to where the next answer begins. Each picture is one IMAGE token.

        The pictures of a turn come before its texts, which a space joins: so were all chats of the training.
        Raises BadRequest as `encode` does.
        """
        ids: list[int] = []
        for turn in turns:
            pictures = [IMAGE for part in turn.parts if isinstance(part, ImagePart)]
            text = " ".join(part for part in turn.parts if isinstance(part, str))
            ids += [_ROLES[turn.role], *pictures, *self.encode(text), END]
        return [*ids, ASSISTANT]


@cache
def _byte_values() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2, section 2.2).

    A printable byte is its own Latin-1 character; the others follow each other from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    values = {chr(byte): byte for byte in printable}
    return values | {chr(256 + place): byte for place, byte in enumerate(others)}
