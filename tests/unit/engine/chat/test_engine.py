"""The chat engine with a real model: answers, caches, failures, deadlines, and clients that leave."""

import asyncio
import random
from typing import Any

import pytest

from foveate.core.chat import SamplingOptions
from foveate.core.plan import Plan
from tests.support.chat_engines import (
    QUESTIONS,
    Collected,
    RecordingRunner,
    chat_call,
    collect,
    expected,
    running_chat,
)
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]


async def test_mixed_calls_that_join_at_random_times_get_the_answers_of_the_runner() -> None:
    runner = RecordingRunner(slots=6, slot_tokens=256)
    plans = [Plan.parse(text, runner.full) for text in ("full", "pool:4", "guided:4", "merge:7:unmerge")]
    dice = random.Random(1)
    calls = [
        chat_call(
            QUESTIONS[number % 5],
            [dice.randrange(3) for _ in range(number % 3)],
            plans[number % 4],
            SamplingOptions(dice.randrange(1, 24)),
        )
        for number in range(16)
    ]

    async def later(number: int) -> Collected:
        await asyncio.sleep(dice.random() * 0.2)
        return await collect(engine, calls[number])

    async with running_chat(runner) as engine:
        got = await asyncio.gather(*map(later, range(16)))
    for call, answer in zip(calls, got, strict=True):
        assert call.plan is not None
        assert answer.text == expected(call, call.plan)
        assert answer.ended is not None and answer.ended.answer_tokens == len(answer.tokens)
    assert max(size for stage, size in runner.steps if stage == "decode") > 1
    assert runner.free_slots == 6
