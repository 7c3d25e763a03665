"""The questions of the bench, the lengths of answers, and answers as clients see them."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.workload import (
    LENGTHS,
    ChatQuestion,
    TimedAnswer,
    ask,
    chat_questions,
    check,
    mixed_lengths,
)
from tests.support.question_sets import unanswered


def test_the_first_questions_are_about_different_pictures(tmp_path: Path, one_thread: None) -> None:
    data = unanswered(tmp_path)
    chosen = chat_questions(data, 99)
    assert len(chosen) == 6 and len({(q.picture.digest, q.text) for q in chosen}) == 6
    assert len({question.picture.digest for question in chosen[:3]}) == 3
    assert chat_questions(data, 2) == chosen[:2]


def test_lengths_are_equally_frequent_and_drawn_by_the_seed() -> None:
    lengths = mixed_lengths(20, 3)
    assert Counter(lengths) == dict.fromkeys(LENGTHS, 4)
    assert lengths == mixed_lengths(20, 3) != mixed_lengths(20, 4)


def test_right_answers_differ_in_no_more_than_case_and_period(asked: list[ChatQuestion]) -> None:
    assert asked[0].is_right(f" {asked[0].answer.upper()}.")
    assert not asked[0].is_right(f"{asked[0].answer} more")


def test_an_answer_has_its_tokens_times_and_failure(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]
) -> None:
    async def both() -> tuple[TimedAnswer, TimedAnswer]:
        async with serving(runner, device) as engine:
            return await ask(engine, asked[0].call(8, runner.full)), await ask(
                engine, asked[0].call(8, deadline=1.0)
            )

    answer, late = asyncio.run(both())
    assert answer.plan == runner.full and 0 < answer.first_s <= answer.total_s
    assert 1 <= len(answer.tokens) <= 8 and not answer.error
    assert (late.error, late.plan, late.tokens) == ("DeadlineExceeded", None, ())
    check([answer])
    with pytest.raises(RuntimeError, match="DeadlineExceeded"):
        check([answer, late])
