"""Count the prefills of chats whose deadline had passed, or whose client had left, at their start."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, cast

from foveate.core.chat import SamplingOptions
from foveate.engine.chat.engine import ChatEngine
from foveate.engine.chat.runner import ChatModel
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.workload import ChatQuestion, ask
from loadtests.report import Figures

DEADLINES_S = (0.05, 0.1, 0.3, 1.0)
CANCEL_SHARE = 0.2
"""Share of the clients that leave before their answer."""
RATE_PER_S = 100.0
"""Above what any plan serves on two cores."""
MAX_TOKENS = 16


class CountingModel:
    """Passes everything to a runner, and counts the prompts of prefills.

    A greedy answer does not depend on its seed, so that the seed of a call can be its number.
    """

    def __init__(self, runner: ChatRunner) -> None:
        self._runner = runner
        self.expires: dict[int, float] = {}
        """When each call expires, in seconds of the monotonic clock; 0 once its client has left."""
        self.prefills = self.expired = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def sequence(self, prompt: ChatPrompt, options: SamplingOptions) -> ChatSequence:
        """The answer to a prompt, before its first token."""
        return self._runner.sequence(prompt, options)

    def prefill(
        self, sequences: Sequence[ChatSequence], counts: Sequence[int]
    ) -> Sequence[AnswerPiece | None]:
        """Count the prompts and prefill them."""
        now = time.monotonic()
        self.prefills += len(sequences)
        numbers = [sequence.sampler.options.seed or 0 for sequence in sequences]
        self.expired += sum(self.expires[number] <= now for number in numbers)
        return self._runner.prefill(sequences, counts)


def measure(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], seed: int = 0
) -> Figures:
    """Counts of a run in which many chats expire and many clients leave."""
    model = CountingModel(runner)
    answered = asyncio.run(_overload(model, device, questions, seed))
    return {
        "expired_prefills": model.expired,
        "expired_offered": len(questions),
        "expired_prefilled": model.prefills,
        "expired_answered": answered,
    }


async def _overload(
    model: CountingModel, device: SharedDevice, questions: Sequence[ChatQuestion], seed: int
) -> int:
    """Send all chats; the number of complete answers."""
    draw = random.Random(seed)  # noqa: S311 - not a secret
    async with serving(cast("ChatModel", model), device, feature_bytes=0, prefix_bytes=0) as engine:
        tasks, started = [], time.monotonic()
        for number, question in enumerate(questions):
            await asyncio.sleep(started + number / RATE_PER_S - time.monotonic())
            deadline_s = draw.choice(DEADLINES_S)
            cancel_s = deadline_s * draw.random() if draw.random() < CANCEL_SHARE else None
            tasks.append(asyncio.create_task(_send(model, engine, question, number, deadline_s, cancel_s)))
        return sum(await asyncio.gather(*tasks))


async def _send(
    model: CountingModel,
    engine: ChatEngine,
    question: ChatQuestion,
    number: int,
    deadline_s: float,
    cancel_s: float | None,
) -> bool:
    """Ask one question; whether it was answered. cancel_s: when the client leaves, None for never."""
    deadline = model.expires[number] = time.monotonic() + deadline_s
    try:
        async with asyncio.timeout(cancel_s):
            answer = await ask(engine, question.call(MAX_TOKENS, None, deadline, number))
    except TimeoutError:
        model.expires[number] = 0.0
        return False
    return not answer.error
