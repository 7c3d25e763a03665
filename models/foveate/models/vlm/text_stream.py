"""The text of an answer as its tokens arrive."""

import codecs
from collections.abc import Sequence

from foveate.models.vlm.tokenizer import ChatTokenizer


class TextStream:
    """Turns tokens into pieces of text that never change again.

    A piece ends between characters, although a token may end within one. Text is held back while it may be
    the beginning of a stop text, and white space until something follows it. The pieces together are what
    `ChatTokenizer.decode` gives, up to the first stop text.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str] = ()) -> None:
        """stop: texts before which the answer ends."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = ""
        """The text with what is held back, from its first character that is no white space."""
        self.text = ""
        """The text so far: all pieces together."""
        self.stopped = False
        """Whether a stop text was generated."""

    def push(self, token: int) -> str:
        """The text that is certain once this token is known."""
        return self._advance(self._tokenizer.token_bytes(token), ended=False)

    def end(self) -> str:
        """The text that was held back: no token follows."""
        return self._advance(b"", ended=True)

    def _advance(self, data: bytes, ended: bool) -> str:
        if self.stopped:
            return ""
        # The space before an answer is no part of it: no stop text begins there.
        self._raw = (self._raw + self._decoder.decode(data, ended)).lstrip()
        places = [place for text in self._stop if (place := self._raw.find(text)) >= 0]
        self.stopped = bool(places)
        if places:
            self._raw = self._raw[: min(places)]
        held = 0 if ended or self.stopped else self._held_back()
        certain = self._raw[: len(self._raw) - held].strip()
        piece, self.text = certain[len(self.text) :], certain
        return piece

    def _held_back(self) -> int:
        """Characters at the end of the text with which a stop text may begin."""
        lengths = (
            length
            for text in self._stop
            for length in range(min(len(text) - 1, len(self._raw)), 0, -1)
            if self._raw.endswith(text[:length])
        )
        return max(lengths, default=0)
