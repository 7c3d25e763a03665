"""A chat engine around a real runner with random weights, calls to it, and a record of its steps."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.chat import (
    ChatCall,
    ChatEnded,
    ChatEvent,
    ChatPicture,
    ChatStarted,
    ChatToken,
    ImagePart,
    SamplingOptions,
    Turn,
)
from foveate.core.metrics import Metrics
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement
from foveate.engine.chat.engine import ChatEngine
from foveate.models.runners.base import Pixels
from foveate.models.vlm.answering import ChatRequest
from foveate.models.vlm.checkpoint import ChatCheckpoint
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from foveate.models.vlm.visual_tokens import PictureFeatures
from tests.support import chat_models

WAIT_S = 30.0
"""Seconds that a test waits for what is due at once."""
QUESTIONS = (
    "what is left of the fox?",
    "how many objects are there?",
    "is there a teacup?",
    "naïve café, ¿qué?",
    "what? " * 9,
)


@cache
def checkpoint() -> ChatCheckpoint:
    """A tiny model with random weights."""
    with TemporaryDirectory() as folder:
        return chat_models.load(Path(folder))


class RecordedChatRunner(ChatRunner):
    """A real runner that records its steps. Tests can block it, and make steps fail."""

    def __init__(self, **options: Any) -> None:
        super().__init__(checkpoint(), **options)
        self.steps: list[tuple[str, int]] = []
        """Stage and size of each forward."""
        self.gate = threading.Event()
        """Steps of decoding wait until it is set."""
        self.gate.set()
        self.entered = threading.Semaphore(0)
        """Released at the start of every step of decoding."""
        self.before: Callable[[str, Any], None] = lambda _, __: None
        """Called on the device's thread before each forward; what it raises fails the forward."""
        self.spoil: Callable[[Tensor, Sequence[PictureFeatures]], None] = lambda _, __: None
        """Called with the pixels and the features of pictures."""
        self.reads_copies: list[bool] = []
        """For each step of decoding, whether the slots were no range."""

    def count(self, stage: str) -> int:
        """Forwards of a stage."""
        return sum(name == stage for name, _ in self.steps)

    def encode(self, batch: Tensor, plan: Plan) -> list[PictureFeatures]:
        torch.set_num_threads(1)
        self.before("encode", batch)
        self.steps.append(("encode", len(batch)))
        features = super().encode(batch, plan)
        self.spoil(batch, features)
        return features

    def prefill(
        self, sequences: Sequence[ChatSequence], counts: Sequence[int] | None = None
    ) -> list[AnswerPiece | None]:
        assert counts is not None
        self.before("prefill", sequences)
        self.steps.append(("prefill", sum(counts)))
        return super().prefill(sequences, counts)

    def decode(self, sequences: Sequence[ChatSequence]) -> list[AnswerPiece]:
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.before("decode", sequences)
        self.steps.append(("decode", len(sequences)))
        slots = [sequence.slot for sequence in sequences]
        self.reads_copies.append(slots != list(range(slots[0], slots[0] + len(slots))))
        return super().decode(sequences)


def measured_runner(light_s: float = 1e-3, full_s: float = 1e-3, step_s: float = 1e-3) -> RecordedChatRunner:
    """A runner with a ladder of two rungs. Seconds of a prefill on each, and of a step of decoding."""
    runner = RecordedChatRunner(slots=2, slot_tokens=256)
    full = ChatMeasurement({}, "", 1.0, 1.0, 1.0, 1.0, {1: 1e-3}, {1: full_s, 8: full_s}, {1: step_s})
    light = replace(full, worst_quality=0.6, prefill_s={1: light_s, 8: light_s})
    ladder = (
        Rung(Plan.parse("pool:4", runner.full), 1.0, 4, 0.9, chat=light),
        Rung(runner.full, 4.0, 16, 1.0, chat=full),
    )
    runner.card = replace(runner.card, ladder=ladder)
    return runner


def picture(seed: int = 0) -> Pixels:
    side = chat_models.TRUNK.image_size
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def asked(question: str, pictures: int = 1) -> tuple[Turn, ...]:
    return (Turn("user", (*[ImagePart()] * pictures, question)),)


def chat_call(
    turns: Sequence[Turn] | str,
    seeds: Sequence[int] = (),
    plan: Plan | None = None,
    options: SamplingOptions | None = None,
    **rest: Any,
) -> ChatCall:
    """A call. turns: or the text of a question about the pictures of these seeds."""
    turns = asked(turns, len(seeds)) if isinstance(turns, str) else turns
    pixels = [picture(seed) for seed in seeds]
    pictures = [ChatPicture(hashlib.sha256(p.tobytes()).digest(), p, p.nbytes) for p in pixels]
    return ChatCall("id", chat_models.NAME, turns, pictures, options or SamplingOptions(8), plan=plan, **rest)


@dataclass
class Collected:
    """The events of one answer."""

    started: ChatStarted | None = None
    tokens: list[ChatToken] = field(default_factory=list)
    ended: ChatEnded | None = None

    def add(self, event: ChatEvent) -> None:
        if isinstance(event, ChatStarted):
            assert self.started is None and not self.tokens
            self.started = event
        elif isinstance(event, ChatToken):
            assert self.started is not None and self.ended is None
            self.tokens.append(event)
        else:
            self.ended = event

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


async def collect(engine: Any, call: ChatCall) -> Collected:
    """The whole answer. engine: anything with `chat`."""
    collected = Collected()
    async with asyncio.timeout(WAIT_S):
        async for event in engine.chat(call):
            collected.add(event)
    return collected


def expected(call: ChatCall, plan: Plan) -> str:
    """The text of the answer that a runner of its own gives."""
    runner = reference()
    request = ChatRequest([each.pixels for each in call.pictures], call.turns, call.options)
    with torch.inference_mode():
        return runner.answer(request.pictures, request.turns, plan, request.options).text


@cache
def reference() -> ChatRunner:
    return ChatRunner(checkpoint(), slots=1, slot_tokens=256)


@asynccontextmanager
async def running_chat(
    runner: RecordedChatRunner, metrics: Metrics | None = None, **options: Any
) -> AsyncIterator[ChatEngine]:
    """An engine that serves until the end of the block."""
    engine = ChatEngine(runner, metrics or Metrics(), **options)
    engine.start()
    try:
        yield engine
    finally:
        runner.gate.set()
        await engine.close()
