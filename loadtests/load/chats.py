"""Chats to send: questions about held-out pictures, repeated pictures, and conversations that go on."""

import base64
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import AskedImage, AskedQuestion, heldout_questions
from loadtests.load.chat_answers import DONE
from loadtests.load.chat_records import ChatRecord

PATH = "/v1/chat/completions"
Weights = dict[str, Annotated[float, Field(gt=0)]]
TokenWeights = dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]]


class ChatTraffic(BaseModel):
    """What the chats of a run ask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    """The name of the model, as the server knows it."""
    max_tokens: TokenWeights = {32: 1.0}
    """Tokens of an answer at most: one number, or several with their weights."""
    kinds: Weights = {}
    """Kinds of questions with their weights; none: all questions equally often."""
    repeated: float = Field(default=0.3, ge=0, le=1)
    """Share of the conversations that are about the picture of an earlier one."""
    follow_ups: float = Field(default=0.3, ge=0, le=1)
    """Share of the chats that ask another question in a conversation that is open."""
    turns: int = Field(default=3, ge=1)
    """Questions of a conversation at most."""
    pause_s: float = Field(default=1.0, ge=0)
    """Seconds from a question to the next one in its conversation, at least."""
    idle_s: float = Field(default=30.0, ge=0)
    """A conversation ends when nothing was asked in it for so long; seconds."""
    detail: Literal["auto", "low", "high"] = "auto"

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, int) else value


def chat_traffic(text: str) -> ChatTraffic:
    """The traffic from JSON, from a JSON file, or from the name of a model. Raises SetupError.

    Example: {"model": "vit-t-chat", "max_tokens": {"4": 3, "64": 1}, "repeated": 0.5, "follow_ups": 0.3}.
    """
    try:
        if text.lstrip().startswith("{"):
            return ChatTraffic.model_validate_json(text)
        if text.endswith(".json"):
            return ChatTraffic.model_validate_json(Path(text).read_text())
        return ChatTraffic(model=text)
    except OSError as error:
        raise SetupError(f"cannot read the chats {text}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "the text"
        raise SetupError(f"the chats are invalid at {location}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class PlannedChat:
    """One chat of a run."""

    image: int
    """Index of the picture."""
    questions: tuple[int, ...]
    """Indices of the questions of the conversation so far among those of the picture; the last is asked."""
    max_tokens: int
    repeated: bool
    """Whether an earlier conversation was about the same picture."""


@dataclass(slots=True)
class _Conversation:
    image: int
    repeated: bool
    asked: tuple[int, ...]
    last_at: float


_LAST_AT = attrgetter("last_at")


class ChatPlanner:
    """Draws the chats of a run; the same arguments give the same chats."""

    def __init__(self, traffic: ChatTraffic, images: Sequence[AskedImage], seed: int) -> None:
        """Raises SetupError if no picture has a question of these kinds."""
        self.traffic, self.random = traffic, np.random.default_rng([seed, 3])
        known = {question.kind for image in images for question in image.questions}
        unknown = sorted(traffic.kinds.keys() - known)
        if unknown:
            raise SetupError(
                f"there are no questions of kind {unknown[0]}; there are {', '.join(sorted(known))}"
            )
        weights = traffic.kinds or dict.fromkeys(known, 1.0)
        self._weights = [[weights.get(each.kind, 0.0) for each in image.questions] for image in images]
        self._unused = deque(number for number, row in enumerate(self._weights) if any(row))
        self._used: list[int] = []
        if not self._unused:
            raise SetupError("no picture has a question")
        self._open: list[_Conversation] = []
        """Conversations that may go on, the one that was asked last at the end."""

    def chat(self, at: float) -> PlannedChat:
        """The chat at this time; times increase from call to call."""
        traffic = self.traffic
        del self._open[: bisect_left(self._open, at - traffic.idle_s, key=_LAST_AT)]
        going_on = bisect_right(self._open, at - traffic.pause_s, key=_LAST_AT)
        if going_on and self.random.random() < traffic.follow_ups:
            conversation = self._open.pop(int(self.random.integers(going_on)))
        else:
            conversation = self._begin()
        conversation.last_at = at
        conversation.asked += (self._draw(self._left(conversation)),)
        if len(conversation.asked) < traffic.turns and any(self._left(conversation)):
            self._open.append(conversation)
        tokens, weights = zip(*traffic.max_tokens.items(), strict=True)
        max_tokens = tokens[self._draw(weights)]
        return PlannedChat(conversation.image, conversation.asked, max_tokens, conversation.repeated)

    def _begin(self) -> _Conversation:
        """A conversation about the next picture, or about one of an earlier conversation."""
        repeated = self.random.random() < self.traffic.repeated
        if self._used and (repeated or not self._unused):
            return _Conversation(self._used[self.random.integers(len(self._used))], True, (), 0.0)
        self._used.append(self._unused.popleft())
        return _Conversation(self._used[-1], False, (), 0.0)

    def _left(self, conversation: _Conversation) -> list[float]:
        """The weights of the questions about its picture, 0 for those that are asked."""
        row = enumerate(self._weights[conversation.image])
        return [0.0 if number in conversation.asked else weight for number, weight in row]

    def _draw(self, weights: Sequence[float]) -> int:
        share = np.asarray(weights) / np.sum(weights)
        return int(self.random.choice(len(share), p=share))


class ChatRequests:
    """The bodies and the right answers of all chats of a run.

    The turns of the assistant in a conversation are the right answers, not those that the server gave: a
    question can then be sent at its time though an earlier answer is late, and every server gets the same
    chats.
    """

    def __init__(
        self, traffic: ChatTraffic, images: Sequence[AskedImage], at: NDArray[np.float64], seed: int
    ) -> None:
        """images: the first one unused comes first. Raises SetupError."""
        planner = ChatPlanner(traffic, images, seed)
        self.traffic, self.images = traffic, images
        self.chats = tuple(planner.chat(time) for time in at.tolist())
        self._urls: dict[int, str] = {}

    def body(self, index: int) -> bytes:
        """The body of a request."""
        return self._body(self.chats[index])

    @property
    def probe(self) -> bytes:
        """The body of a request to see whether the server answers."""
        last = len(self.images) - 1
        return self._body(PlannedChat(last, (0,), min(self.traffic.max_tokens), False))

    def is_whole(self, body: bytes) -> bool:
        """Whether a stream has its end."""
        return body.rstrip().endswith(DONE)

    def label(self, index: int) -> str:
        """The right answer to a request."""
        return self._asked(self.chats[index]).answer

    def chat(self, index: int, first_token_by_s: float | None) -> ChatRecord:
        """The record of a chat before its answer."""
        chat = self.chats[index]
        return ChatRecord(
            self._asked(chat).kind, len(chat.questions) - 1, chat.repeated, chat.max_tokens, first_token_by_s
        )

    def _asked(self, chat: PlannedChat) -> AskedQuestion:
        return self.images[chat.image].questions[chat.questions[-1]]

    def _body(self, chat: PlannedChat) -> bytes:
        questions = [self.images[chat.image].questions[number] for number in chat.questions]
        messages: list[Mapping[str, Any]] = [
            {
                "role": "user",
                "content": [self._picture(chat.image), {"type": "text", "text": questions[0].question}],
            }
        ]
        for before, asked in pairwise(questions):
            messages += [
                {"role": "assistant", "content": before.answer},
                {"role": "user", "content": asked.question},
            ]
        return orjson.dumps(
            {
                "model": self.traffic.model,
                "messages": messages,
                "max_tokens": chat.max_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )

    def _picture(self, image: int) -> Mapping[str, Any]:
        if image not in self._urls:
            self._urls[image] = f"data:image/jpeg;base64,{base64.b64encode(self.images[image].jpeg).decode()}"
        detail = {} if self.traffic.detail == "auto" else {"detail": self.traffic.detail}
        return {"type": "image_url", "image_url": {"url": self._urls[image], **detail}}


def asked_images(count: int, seed: int) -> tuple[AskedImage, ...]:
    """`count` held-out pictures with questions, or all of them for 0, in an order drawn from the seed.

    Raises SetupError if there are fewer.
    """
    images = heldout_questions()
    if not 0 <= count <= len(images):
        raise SetupError(
            f"--catalogue must be 0 to {len(images)}, the number of held-out pictures with questions, "
            f"not {count}"
        )
    order = np.random.default_rng([seed, 2]).permutation(len(images))[: count or None]
    return tuple(images[number] for number in order)
