"""The chats of the bench: shipped held-out questions about decoded pictures, and the answers to them."""

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.chat import ChatCall, ChatPicture, ChatStarted, ChatToken, SamplingOptions
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.chat.engine import ChatEngine
from foveate.models.profiling.chat_quality import turns_of
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.zoo.heldout import normalised

SHORT, LONG = 4, 64
LENGTHS = (SHORT, 8, 16, 32, LONG)
"""Tokens of answers in a mix, equally frequent."""


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A question about one picture."""

    picture: ChatPicture
    text: str
    answer: str
    """The right one."""

    def call(
        self,
        max_tokens: int,
        plan: Plan | None = None,
        deadline: float | None = None,
        seed: int | None = None,
    ) -> ChatCall:
        """The greedy chat that asks it. deadline: of the last token, in seconds of the monotonic clock."""
        options = SamplingOptions(max_tokens, seed=seed)
        return ChatCall(
            "bench", "", turns_of(self.text), (self.picture,), options, Objective(deadline), plan=plan
        )  # fmt: skip

    def is_right(self, text: str) -> bool:
        """Whether a text is the right answer."""
        return normalised(text) == normalised(self.answer)


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """What the engine gave for a call."""

    text: str
    tokens: tuple[bytes | None, ...]
    """The bytes of each token; None for the end mark."""
    plan: Plan | None
    """None for a call that failed before its first token."""
    first_s: float
    """Seconds from sending to the first token."""
    total_s: float
    """Seconds from sending to the end of the answer, or to the failure."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were kept."""
    error: str = ""
    """The title of the error; empty for a complete answer."""


def chat_questions(data: DecodedQuestions, count: int, seed: int = 0) -> list[ChatQuestion]:
    """Questions in random order. The first ones are about different pictures, as far as there are so many."""
    draw = random.Random(seed)  # noqa: S311 - not a secret
    order = draw.sample(range(len(data.asked)), len(data.asked))
    used: dict[int, int] = {}
    place: dict[int, int] = {}
    for index in order:
        number = data.asked[index][0]
        place[index] = used[number] = used.get(number, -1) + 1
    chosen = sorted(order, key=lambda index: place[index])[:count]
    pictures = {number: _picture(data, number) for number in {data.asked[index][0] for index in chosen}}
    rows = [data.asked[index] for index in chosen]
    return [ChatQuestion(pictures[number], asked.question, asked.answer) for number, asked in rows]


def _picture(data: DecodedQuestions, number: int) -> ChatPicture:
    pixels = data.images.at([number])[0]
    return ChatPicture(hashlib.sha256(pixels.tobytes()).digest(), pixels, pixels.nbytes)


def mixed_lengths(count: int, seed: int) -> list[int]:
    """Lengths of answers: each of LENGTHS equally often, as far as possible, in random order."""
    lengths = [LENGTHS[number % len(LENGTHS)] for number in range(count)]
    random.Random(seed).shuffle(lengths)  # noqa: S311 - not a secret
    return lengths


async def ask(engine: ChatEngine, call: ChatCall) -> TimedAnswer:
    """The answer to a call, as its client sees it."""
    sent, first_s = time.perf_counter(), 0.0
    text, tokens = "", list[bytes | None]()
    plan, cached, error = None, 0, ""
    try:
        async for event in engine.chat(call):
            if isinstance(event, ChatStarted):
                plan, cached, first_s = event.plan, event.cached_tokens, time.perf_counter() - sent
            elif isinstance(event, ChatToken):
                text += event.text
                tokens.append(event.logprob.data if event.logprob else None)
    except FoveateError as failure:
        error = type(failure).__name__
    return TimedAnswer(text, tuple(tokens), plan, first_s, time.perf_counter() - sent, cached, error)


def check(answers: Sequence[TimedAnswer]) -> None:
    """Raise RuntimeError unless all answers are complete: a figure must not come from failures."""
    failed = next((answer.error for answer in answers if answer.error), "")
    if failed:
        raise RuntimeError(f"an answer failed in a run where all have to be complete: {failed}")
