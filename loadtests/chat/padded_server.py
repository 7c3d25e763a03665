"""The baseline of a server with static batches: it runs those that wait, padded, to the longest answer."""

import asyncio
from collections import deque
from dataclasses import dataclass
from functools import partial

from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.visual_tokens import PictureFeatures
from loadtests.chat.device import SharedDevice
from loadtests.chat.generate import CacheKind, generate_answers
from loadtests.chat.workload import ChatQuestion


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    question: ChatQuestion
    picture: PictureFeatures
    tokens: int
    answer: asyncio.Future[list[int]]


class PaddedServer:
    """Collects what waits, up to the slots of the runner, and generates it as one batch."""

    def __init__(self, runner: ChatRunner, device: SharedDevice, cache: CacheKind = "dynamic") -> None:
        self._runner, self._device, self._cache = runner, device, cache
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self.batches: list[int] = []
        """The size of each batch."""

    async def ask(self, question: ChatQuestion, picture: PictureFeatures, tokens: int) -> list[int]:
        """The tokens of an answer: so many, whatever its end mark."""
        waiting = _Waiting(question, picture, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._changed.set()
        return await waiting.answer

    async def serve(self) -> None:
        """OverloadRun batches until this is cancelled."""
        while True:
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            count = min(len(self._waiting), self._runner.slots)
            batch = [self._waiting.popleft() for _ in range(count)]
            self.batches.append(count)
            try:
                rows = await self._device.run(partial(self._generate, batch))
            except Exception as error:  # it would leave the clients waiting
                for each in batch:
                    each.answer.set_exception(error)
                continue
            for each, row in zip(batch, rows, strict=True):
                each.answer.set_result(row[: each.tokens])

    def _generate(self, batch: list[_Waiting]) -> list[list[int]]:
        questions, pictures = [each.question for each in batch], [each.picture for each in batch]
        tokens = max(each.tokens for each in batch)
        return generate_answers(self._runner, questions, pictures, tokens, self._cache)
