"""What the record of a chat has beside that of other requests: its question, its tokens, and their times."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from foveate.models.zoo.heldout import normalised
from loadtests.load.answers import StreamedText


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A chat and its answer. None stands for what the server did not say or send."""

    kind: str
    """The kind of its question, such as "colour"."""
    turn: int
    """0 for the first question of a conversation."""
    repeated: bool
    """Whether an earlier conversation was about the same picture."""
    max_tokens: int
    first_token_by_s: float | None = None
    """The deadline of the first token, from the scheduled time; None for none."""
    first_token_s: float | None = None
    """From the scheduled time to the first text."""
    token_s: float | None = None
    """Mean seconds from one token to the next; None with a single token."""
    gap_s: float | None = None
    """The longest time between two pieces of text."""
    tokens: int = 0
    """Tokens of the answer, or pieces of text where the server reports no usage."""
    finish: str = ""
    """`stop` or `length`; empty without an answer."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of the prompt that the server had in a cache."""
    visual_tokens: int | None = None

    @property
    def first_token_late(self) -> bool:
        """Whether the first token came after its deadline."""
        if self.first_token_by_s is None or self.first_token_s is None:
            return False
        return self.first_token_s > self.first_token_by_s

    @property
    def place(self) -> str:
        """How much of the prompt a server can have in a cache: one of PLACES."""
        return PLACES[2 if self.turn else int(self.repeated)]

    def answered(self, at: float, times: Sequence[float], stream: StreamedText) -> "ChatRecord":
        """The same with its answer. at: the scheduled time; times: when its pieces and its end came."""
        first, last = times[0], times[-1]
        return replace(
            self,
            first_token_s=first - at,
            token_s=(last - first) / (stream.tokens - 1) if stream.tokens > 1 else None,
            gap_s=max((after - before for before, after in pairwise(times)), default=None),
            tokens=stream.tokens,
            finish=stream.finish,
            prompt_tokens=stream.prompt_tokens,
            cached_tokens=stream.cached_tokens,
            visual_tokens=stream.visual_tokens,
        )


PLACES = ("new picture", "repeated picture", "follow-up")
"""First questions about a picture, those about one of an earlier conversation, and follow-up questions."""


def is_right(answer: str, wanted: str) -> bool:
    """Whether an answer is equal to the right one; case and a final period do not matter."""
    return normalised(answer) == normalised(wanted)
