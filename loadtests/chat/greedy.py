"""Compare the answers of the served engine with those of transformers' `generate`."""

import asyncio
from collections.abc import Sequence

from foveate.core.plan import Plan
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.tokenizer import END
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.generate import features, generate, padded, prompts
from loadtests.chat.workload import ChatQuestion, TimedAnswer, ask
from loadtests.report import Figures

PLANS = ("full", "pool:49", "pool:16", "guided:16")
"""Each question is asked under one of them, so that batches mix prompts of different lengths."""
MAX_TOKENS = 32
WAVE = 2
"""Chats in flight at once, as a multiple of the slots: they join and leave all the time."""


def measure(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], plans: Sequence[str] = PLANS
) -> Figures:
    """The share of questions whose answers have the same tokens."""
    chosen = [Plan.parse(plans[number % len(plans)], runner.full) for number in range(len(questions))]
    answers = asyncio.run(_served(runner, device, questions, chosen))
    equal = 0
    for question, plan, answer in zip(questions, chosen, answers, strict=True):
        [row] = device.call(lambda q=question, p=plan: _alone(runner, q, p))  # type: ignore[misc]
        equal += answer.tokens == token_bytes(runner, row)
    return {"greedy_questions": len(questions), "greedy_equal": equal / len(questions)}


async def _served(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], plans: Sequence[Plan]
) -> list[TimedAnswer]:
    """The answers of the engine, with more chats in flight than slots."""
    limit = asyncio.Semaphore(WAVE * runner.slots)

    async with serving(runner, device) as engine:

        async def one(question: ChatQuestion, plan: Plan) -> TimedAnswer:
            async with limit:
                return await ask(engine, question.call(MAX_TOKENS, plan))

        return await asyncio.gather(*(one(q, plan) for q, plan in zip(questions, plans, strict=True)))


def _alone(runner: ChatRunner, question: ChatQuestion, plan: Plan) -> list[list[int]]:
    made = prompts(runner, [question], [features(runner, question, plan)], plan)
    return generate(runner, padded(made), MAX_TOKENS, ends=True)


def token_bytes(runner: ChatRunner, row: Sequence[int]) -> tuple[bytes | None, ...]:
    """Tokens as an `TimedAnswer` has them."""
    return tuple(None if token == END else runner.tokenizer.token_bytes(token) for token in row)
