"""A cluster whose chats a real vision-language model answers one by one, on a thread of its own."""

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from foveate.cluster import Slot
from foveate.cluster.local import LocalCluster
from foveate.core.chat import ChatCall, ChatEnded, ChatEvent, ChatStarted, ChatToken, TokenLogprob
from foveate.core.errors import FoveateError
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.models.vlm.generation import AnswerPiece
from foveate.models.vlm.runner import ChatAnswer, ChatRunner
from foveate.models.vlm.tokenizer import END
from tests.support.gateway import identity


class AnswerCancelled(Exception):
    """The client has left."""


class OneByOneCluster(LocalCluster):
    """A local cluster with one chat model. What a test sets decides which calls fail."""

    def __init__(self, runner: ChatRunner, *others: Any) -> None:
        """others: runners of further models, behind the chat model."""
        super().__init__([partial(identity, each) for each in others], Metrics())
        self.chat_runner = runner
        self.calls: list[ChatCall] = []
        self.reserved: list[ChatCall] = []
        """The calls as they were before their pictures were decoded."""
        self.refusal: FoveateError | None = None
        """Raised when a chat is reserved."""
        self.failure: Exception | None = None
        """Raised in place of the event of number `failing_event`."""
        self.failing_event = 0
        self.pause_s = 0.0
        """Before each token."""
        self.closed = 0
        """Answers whose generator was closed before its end."""
        self._thread = ThreadPoolExecutor(1)
        self._lock = asyncio.Lock()

    def cards(self) -> dict[str, ModelCard]:
        return {self.chat_runner.card.name: self.chat_runner.card} | super().cards()

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> Slot:
        if model != self.chat_runner.card.name:
            return super().reserve(model, objective, plan, ready_in_s)
        if self.refusal is not None:
            raise self.refusal
        if plan is not None:
            self.chat_runner.check(plan)
        assert call is not None
        self.reserved.append(call)
        return Slot(self, model)

    async def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        assert reserved
        self.calls.append(call)
        ended = False
        try:
            async with self._lock:
                number = 0
                async for event in self._events(call):
                    if self.failure is not None and number == self.failing_event:
                        raise self.failure
                    yield event
                    number += 1
            ended = True
        finally:
            self.closed += not ended

    async def _events(self, call: ChatCall) -> AsyncGenerator[ChatEvent, None]:
        loop, pieces, cancelled = asyncio.get_running_loop(), asyncio.Queue[Any](), False
        admitted = time.monotonic()
        plan = call.plan or self.chat_runner.full

        def on_piece(piece: AnswerPiece) -> None:
            if cancelled:
                raise AnswerCancelled
            time.sleep(self.pause_s)
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def answer() -> ChatAnswer:
            pixels = [picture.pixels for picture in call.pictures]
            return self.chat_runner.answer(pixels, call.turns, plan, call.options, on_piece)

        work = loop.run_in_executor(self._thread, answer)
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            first = True
            while (piece := await pieces.get()) is not None:
                if first:
                    first = False
                    yield self._started(call, plan, time.monotonic() - admitted)
                if piece.choice is not None:
                    yield self._token(piece)
            result = await work
        finally:
            cancelled = True
            await asyncio.wait([work])
            work.exception()
        total_s = time.monotonic() - admitted
        yield ChatEnded(result.finish, len(result.choices), result.cost.total, total_s)

    def _started(self, call: ChatCall, plan: Plan, first_token_s: float) -> ChatStarted:
        runner, pictures = self.chat_runner, len(call.pictures)
        visual = pictures * runner.method(plan).count
        text = len(runner.tokenizer.chat(call.turns)) - pictures
        reason = "full" if call.plan is None else "pinned"
        return ChatStarted(
            plan, runner.card.quality_of(plan), "pinned" if reason == "pinned" else "full", text, visual, 0,
            call.options.max_tokens, 0.0, first_token_s,
        )  # fmt: skip

    def _token(self, piece: AnswerPiece) -> ChatToken:
        assert piece.choice is not None
        others = tuple(self._logprob(*each) for each in piece.choice.alternatives)
        if piece.choice.token == END:
            return ChatToken(piece.text, None, others)
        return ChatToken(piece.text, self._logprob(piece.choice.token, piece.choice.logprob), others)

    def _logprob(self, token: int, logprob: float) -> TokenLogprob:
        data = self.chat_runner.tokenizer.token_bytes(token)
        return TokenLogprob(data.decode("utf-8", "backslashreplace"), data, logprob)
