"""Prompts and answers of a tiny vision-language model, and a key/value cache for them."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.models.vlm.key_value_cache import CacheShape, KeyValueCache
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.prompt import ChatPrompt, build_prompt
from foveate.models.vlm.sequence import ChatSequence
from foveate.models.vlm.tokenizer import ChatTokenizer
from tests.support import chat_models

LENGTH = 160
PICTURE = ImagePart()
QUESTION = Turn("user", (PICTURE, "what is left of the fox?"))
CHATS: dict[str, tuple[Sequence[Turn], Sequence[int]]] = {
    "no picture": ((Turn("user", ("how many objects are there?",)),), ()),
    "one picture": ((QUESTION,), (16,)),
    "one token": ((QUESTION,), (1,)),
    "two pictures": ((Turn("user", (PICTURE, PICTURE, "what is left?")),), (49, 4)),
    "several turns": (
        (QUESTION, Turn("assistant", ("a teacup.",)), Turn("user", ("and how many objects?",))), (9,),
    ),
    "a picture in each turn": (
        (QUESTION, Turn("assistant", ("a fox.",)), Turn("user", ("and here?", PICTURE, "three?"))), (9, 25),
    ),
    "a system prompt": ((Turn("system", ("you are a helpful assistant.",)), QUESTION), (16,)),
    "an empty question": ((Turn("user", (PICTURE, "")),), (4,)),
}  # fmt: skip
"""Turns, and the visual tokens of each picture."""


@cache
def words() -> ChatTokenizer:
    return chat_models.tokenizer()


@cache
def model() -> VisionLanguageModel:
    return chat_models.model(len(words()))


def visual(counts: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 32, generator=generator) for count in counts]


def prompt(chat: str) -> ChatPrompt:
    turns, counts = CHATS[chat]
    return build_prompt(model(), words().chat(turns), visual(counts))


def slots(count: int, length: int = LENGTH) -> KeyValueCache:
    return KeyValueCache(CacheShape.of(chat_models.decoder_spec(len(words())), count, length))


def sequence(chat: str, options: SamplingOptions | None = None) -> ChatSequence:
    return ChatSequence(prompt(chat), options or SamplingOptions(12), words())


def tokens(answer: ChatSequence) -> list[int]:
    return [choice.token for choice in answer.choices]
