"""A model without weights, for the chat engine's scheduler: its steps only take time on a virtual clock."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.chat import CachedParts, FinishReason, SamplingOptions, TokenLogprob, Turn
from foveate.core.errors import FoveateError
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.estimation.chat_latency import ChatStage
from foveate.models import compression
from foveate.models.layers.visual_tokens import CompressionContext
from loadtests.simulate.chats.workload import SimulatedChat

PICTURE = 2**32 - 1
"""The token of a picture."""
PATCH = 16
"""Side of a patch in pixels; it only has to divide the size."""
FEATURE_BYTES = 300_000
"""Bytes of a picture's features: those of vit-t-chat."""
TOKEN_BYTES = 10_000
"""Bytes of the keys and values of a token: those of vit-t-chat."""


@dataclass(frozen=True, slots=True)
class SimulatedFeatures:
    """Stand in for a picture's features."""

    nbytes: int = FEATURE_BYTES


@dataclass(frozen=True, slots=True)
class SimulatedPrefix:
    """Stands in for keys and values of the beginning of a prompt."""

    tokens: int
    pictures: int

    def __len__(self) -> int:
        return self.tokens

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.tokens * TOKEN_BYTES

    def cut(self, tokens: int, pictures: int) -> "SimulatedPrefix":
        """The first tokens of it."""
        return SimulatedPrefix(tokens, pictures)


@dataclass(frozen=True, slots=True)
class SimulatedPiece:
    """A token of an answer."""

    finish: FinishReason | None
    text: str = ""
    choice: Any = True


@dataclass(frozen=True, slots=True)
class NoCost:
    """The multiply-adds of an answer are not simulated."""

    total: float = 0.0


@dataclass(slots=True, eq=False)
class SimulatedAnswer:
    """An answer while it is generated."""

    unfilled: int
    length: int
    """Tokens after which it ends by itself."""
    max_tokens: int
    slot: int = -1
    divisible: bool = True
    generated: int = 0
    finish: FinishReason | None = None
    error: FoveateError | None = None

    def add_token(self) -> SimulatedPiece:
        """The next token."""
        self.generated += 1
        if self.generated >= self.length:
            self.finish = "stop"
        elif self.generated >= self.max_tokens:
            self.finish = "length"
        return SimulatedPiece(self.finish)


class SimulatedChatModel:
    """A `ChatModel`. `plan` is set before each step: a real model knows it from what it encoded."""

    def __init__(
        self,
        card: ModelCard,
        slots: int,
        max_batch: int,
        chats: Sequence[SimulatedChat],
        take: Callable[[Plan, ChatStage, int], None],
    ) -> None:
        """chats: by the seed of their sampling options. take: lets the time of a step pass."""
        self.card, self.slots, self.max_batch, self.picture_token = card, slots, max_batch, PICTURE
        self.plan, self._chats, self._take = card.full, chats, take
        self._free = list(range(slots))
        self._visual = {rung.plan: rung.tokens for rung in card.ladder}
        self._blind = {rung.plan: is_blind(rung.plan) for rung in card.ladder}
        self._encoding = {
            rung.plan: f"{rung.plan.image_size} {rung.chat.encode_gflops if rung.chat else 0}"
            for rung in card.ladder
        }
        self.kv_bytes = self.used_kv_bytes = 0

    @property
    def free_slots(self) -> int:
        """Slots that no answer has."""
        return len(self._free)

    def check(self, plan: Plan) -> None:
        """All plans of the ladder can run."""

    def check_length(self, ids: Sequence[int], plan: Plan) -> None:
        """All prompts fit."""

    def visual_count(self, plan: Plan) -> int:
        """Visual tokens of a picture under a plan."""
        return self._visual[plan]

    def encoding(self, plan: Plan) -> str:
        """Plans that cost the tower the same encode pictures alike."""
        return self._encoding[plan]

    def is_blind(self, plan: Plan) -> bool:
        """Whether the visual tokens of a picture are the same for all questions."""
        return self._blind[plan]

    def read(self, turns: Sequence[Turn], options: SamplingOptions) -> Sequence[int]:
        """Chats of a simulation have tokens and no text."""
        raise NotImplementedError

    def stack(self, media: Sequence[Any], plan: Plan) -> Sequence[Any]:
        """The pictures."""
        return media

    def encode(self, batch: Sequence[Any], plan: Plan) -> Sequence[SimulatedFeatures]:
        """Takes the time of encoding."""
        self._take(plan, "encode", len(batch))
        return [SimulatedFeatures()] * len(batch)

    def visual_tokens(self, pictures: Sequence[Any], plan: Plan, questions: Sequence[str]) -> Sequence[int]:
        """The number of visual tokens of each picture."""
        return [self._visual[plan]] * len(pictures)

    def prompt_of(
        self, ids: Sequence[int], visual: Sequence[int], prefix: SimulatedPrefix | None = None
    ) -> int:
        """The tokens of a prompt behind its prefix."""
        places = [place for place, token in enumerate(ids) if token == PICTURE]
        behind = places[prefix.pictures - 1] + 1 if prefix else 0
        return len(ids) - behind + sum(visual) - len(visual)

    def sequence(self, prompt: int, options: SamplingOptions) -> SimulatedAnswer:
        """The answer to a chat, whose index is the seed."""
        return SimulatedAnswer(prompt, self._chats[options.seed or 0].answer_tokens, options.max_tokens)

    def prefill(
        self, sequences: Sequence[SimulatedAnswer], counts: Sequence[int]
    ) -> Sequence[SimulatedPiece | None]:
        """Takes the time of the prefill; the first tokens of the prompts that are complete."""
        for sequence, count in zip(sequences, counts, strict=True):
            if sequence.slot < 0:
                sequence.slot = self._free.pop()
            sequence.unfilled -= count
        self._take(self.plan, "prefill", sum(counts))
        pieces = [None if sequence.unfilled > 0 else sequence.add_token() for sequence in sequences]
        self._free_ended(sequences)
        return pieces

    def decode(self, sequences: Sequence[SimulatedAnswer]) -> Sequence[SimulatedPiece]:
        """Takes the time of a step; one token for each answer."""
        self._take(self.plan, "decode", len(sequences))
        pieces = [sequence.add_token() for sequence in sequences]
        self._free_ended(sequences)
        return pieces

    def cancel(self, sequences: Sequence[SimulatedAnswer]) -> None:
        """Free the slots of these answers."""
        for sequence in sequences:
            if sequence.slot >= 0:
                self._free.append(sequence.slot)
                sequence.slot = -1

    def _free_ended(self, sequences: Sequence[SimulatedAnswer]) -> None:
        self.cancel([sequence for sequence in sequences if sequence.finish is not None])

    def compact(self, sequences: Sequence[Any]) -> None:
        """Moving slots takes no time."""

    def read_prefix(self, sequence: Any, ids: Sequence[int], plan: Plan) -> SimulatedPrefix:
        """The prompt up to its last picture."""
        pictures = sum(token == PICTURE for token in ids)
        last = max(place for place, token in enumerate(ids) if token == PICTURE)
        return SimulatedPrefix(last + 1 + pictures * (self._visual[plan] - 1), pictures)

    def logprobs(self, choice: Any) -> tuple[TokenLogprob | None, tuple[TokenLogprob, ...]]:
        """Tokens have no texts."""
        return None, ()

    def cost(
        self, plan: Plan, text_tokens: int, pictures: int, answer_tokens: int, cached: CachedParts
    ) -> NoCost:
        """Not simulated."""
        return NoCost()


def is_blind(plan: Plan) -> bool:
    """Whether the method of a plan looks at no question."""
    side = math.ceil(plan.image_size / PATCH)
    return not compression.create(plan.reducer, CompressionContext((side, side), PATCH)).needs_question
