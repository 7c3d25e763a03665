"""Answers that go on behind their end mark."""

import asyncio
from typing import Any

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.fixed_lengths import fixed_lengths
from loadtests.chat.generate import features, generate_answers
from loadtests.chat.greedy import token_bytes
from loadtests.chat.workload import ChatQuestion, TimedAnswer, ask

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_answers_are_as_long_as_asked_for_and_those_of_generate(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]
) -> None:
    async def answers(model: Any, count: int) -> list[TimedAnswer]:
        async with serving(model, device) as engine:
            return await asyncio.gather(*(ask(engine, q.call(count, runner.full)) for q in asked))

    natural = asyncio.run(answers(runner, 12))
    assert any(len(answer.tokens) < 12 for answer in natural)
    fixed = asyncio.run(answers(fixed_lengths(runner), 12))
    pictures = [features(runner, question, runner.full) for question in asked]
    rows = generate_answers(runner, asked, pictures, 12)
    assert [answer.tokens for answer in fixed] == [token_bytes(runner, row) for row in rows]
