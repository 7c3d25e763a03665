"""The forecast of continuous batching against a simulation of the engine, token by token."""

import math
import random

import pytest

from foveate.scheduling.chat_forecast import AnswerTimes, JoiningCall, RunningTokens, forecast


def step_s(answers: int) -> float:
    return 0.004 + 0.001 * answers


def tokens(count: int) -> RunningTokens:
    return RunningTokens(count, count)


def simulated(
    start: float, slots: int, running: list[int], joining: list[tuple[float, int]]
) -> list[AnswerTimes]:
    """What the engine does: one start, then one token for each that runs, until all are over."""
    now, first, last = start, [-math.inf] * len(running), [math.inf] * len(running)
    left = dict(enumerate(running))
    queue = list(joining)
    while left or queue:
        if queue and len(left) < slots:
            start_s, count = queue.pop(0)
            now += start_s
            first.append(now)
            last.append(now)
            if count > 1:
                left[len(first) - 1] = count - 1
        if left:
            now += step_s(len(left))
        for row in list(left):
            left[row] -= 1
            if not left[row]:
                last[row] = now
                del left[row]
    return [AnswerTimes(*pair) for pair in zip(first, last, strict=True)]


def test_it_follows_the_engine() -> None:
    dice = random.Random(0)
    for _ in range(200):
        slots = dice.randrange(1, 5)
        running = [dice.randrange(1, 20) for _ in range(dice.randrange(slots + 1))]
        joining = [(0.01 * dice.random(), dice.randrange(1, 20)) for _ in range(dice.randrange(8))]
        got = forecast(
            1.0, step_s, slots, [tokens(n) for n in running], [JoiningCall(s, tokens(n)) for s, n in joining]
        )
        for each, other in zip(got, simulated(1.0, slots, running, joining), strict=True):
            assert each.first == pytest.approx(other.first)
            assert each.last == pytest.approx(other.last)


def test_an_answer_costs_others_its_mean_and_is_judged_by_its_high_length() -> None:
    (alone,) = forecast(0.0, step_s, 2, [], [JoiningCall(0.01, RunningTokens(4, 40))])
    assert alone.last == pytest.approx(0.01 + 39 * 0.005)
    beside = forecast(0.0, step_s, 2, [], [JoiningCall(0.01, RunningTokens(4, 40))] * 2)
    assert beside[0].last == pytest.approx(0.02 + 0.005 + 2 * 0.006 + 36 * 0.005, abs=0.002)
    queued = forecast(0.0, step_s, 1, [RunningTokens(4, 40)], [JoiningCall(0.01, tokens(1))])
    assert queued[1].first == pytest.approx(0.03)


def test_a_call_does_not_start_before_it_is_ready() -> None:
    (late,) = forecast(0.0, step_s, 2, [], [JoiningCall(0.01, tokens(2), ready_at=1.0)])
    assert [late.first, late.last] == pytest.approx([1.01, 1.015])
