"""The chats of a simulation: those that the load test would send, with the lengths of prompts and answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.engine.chat.admission import TOKEN_CHARACTERS
from foveate.models.zoo.heldout import AskedImage
from loadtests.load.chats import ChatPlanner, ChatTraffic
from loadtests.simulate.workload import RequestClass, Workload

TURN_TOKENS = 4
"""Tokens of the marks around a question and its answer, about."""


@dataclass(frozen=True, slots=True)
class SimulatedChat:
    """One chat. All of it but its picture is text."""

    picture: int
    """Equal for chats about the same picture."""
    seen: bool
    """Whether an earlier chat was about the same picture."""
    text_tokens: int
    """Of the prompt, without visual tokens."""
    answer_tokens: int
    """Tokens that the model would generate, the end mark included."""
    max_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return min(self.answer_tokens, self.max_tokens)


@dataclass(frozen=True, slots=True)
class ChatWorkload(Workload):
    """All N chats of a simulation."""

    chats: Sequence[SimulatedChat] = ()
    first_token_s: float = np.inf
    """Seconds from arrival to the deadline of the first token, of all chats; infinite for none."""

    @classmethod
    def planned(
        cls,
        at: NDArray[np.float64],
        classes: Sequence[RequestClass],
        traffic: ChatTraffic,
        images: Sequence[AskedImage],
        seed: int,
        first_token_s: float = np.inf,
    ) -> "ChatWorkload":
        """The chats that a load test with the same arguments sends. Raises SetupError.

        Texts have a token for every TOKEN_CHARACTERS characters, and answers are as long as the right ones.
        """
        planner = ChatPlanner(traffic, images, seed)
        drawn = Workload.draw(at, classes, seed)
        chats = [planner.chat(time) for time in at.tolist()]
        simulated = []
        for chat in chats:
            turns = [images[chat.image].questions[number] for number in chat.questions]
            texts = [each.question for each in turns] + [each.answer for each in turns[:-1]]
            simulated.append(
                SimulatedChat(
                    chat.image,
                    chat.repeated or len(turns) > 1,
                    len(turns) * TURN_TOKENS + sum(map(token_count, texts)),
                    1 + token_count(turns[-1].answer),
                    chat.max_tokens,
                )
            )
        return cls(at, drawn.classes, drawn.class_index, tuple(simulated), first_token_s)


def token_count(text: str) -> int:
    """The tokens of a text, about."""
    return -(-len(text) // TOKEN_CHARACTERS)
