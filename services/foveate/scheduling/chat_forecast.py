"""Predicts when answers get their first and last tokens under continuous batching. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class RunningTokens:
    """The tokens that a running answer has yet to get."""

    mean: float
    """Expected number, at least 1: it shares the steps of the others for so long."""
    high: int
    """A number that it hardly exceeds: its own deadline is judged by it."""


@dataclass(frozen=True, slots=True)
class JoiningCall:
    """A call that waits for a slot."""

    start_s: float
    """Device seconds of encoding and of its prefill, from which its first token comes."""
    tokens: RunningTokens
    """Those of its whole answer."""
    ready_at: float = -math.inf
    """It does not start before its pictures are decoded; clock seconds."""


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """Predicted clock seconds of an answer."""

    first: float
    """Of the first token; that of a running answer is past."""
    last: float
    """Of the last one, if the answer is as long as the high estimate."""


def forecast(
    start: float,
    step_s: Callable[[int], float],
    slots: int,
    running: Sequence[RunningTokens],
    joining: Sequence[JoiningCall],
) -> list[AnswerTimes]:
    """Times of the running answers, then of the joining calls, which start in order.

    start: when the next step can begin; step_s: seconds of a step by the number of answers. It follows the
    engine: a call starts as soon as a slot is free, and between two starts all that run get a token. Answers
    leave after their mean lengths, which is right for what they cost each other.
    """
    run = _Run(start, step_s)
    for tokens in running:
        run.add(tokens, -math.inf)
    for call in joining:
        while run.load >= slots:
            run.advance(run.next_leave)
        run.now = max(run.now, call.ready_at) + call.start_s
        # The prefill gives the first token, so that one step less remains.
        run.add(RunningTokens(call.tokens.mean - 1, call.tokens.high - 1), run.now)
        run.advance(run.step + 1)
    run.advance(math.inf)
    return [AnswerTimes(first, last) for first, last in zip(run.first, run.last, strict=True)]


class _Run:
    """The state of a forecast: time counts in steps, whose length depends on how many answers run."""

    def __init__(self, start: float, step_s: Callable[[int], float]) -> None:
        self.now, self.step, self.load = start, 0.0, 0
        self.first: list[float] = []
        self.last: list[float] = []
        self._step_s = step_s
        self._leaves: list[float] = []
        self._ends: list[tuple[float, int]] = []

    def add(self, tokens: RunningTokens, first: float) -> None:
        """An answer runs from now on."""
        heappush(self._leaves, self.step + max(0.0, tokens.mean))
        heappush(self._ends, (self.step + max(0, tokens.high), len(self.last)))
        self.first.append(first)
        self.last.append(math.inf)
        self.load += 1

    @property
    def next_leave(self) -> float:
        """The step after which the next answer is over."""
        return self._leaves[0]

    def advance(self, step: float) -> None:
        """Run to this step, or to the end of all answers."""
        while self._ends or self._leaves:
            next_end = self._ends[0][0] if self._ends else math.inf
            next_leave = self._leaves[0] if self._leaves else math.inf
            until = min(step, next_end, next_leave)
            self.now += max(0.0, until - self.step) * self._step_s(max(1, self.load))
            self.step = max(self.step, until)
            if until == next_leave:
                heappop(self._leaves)
                self.load -= 1
            elif until == next_end:
                self.last[heappop(self._ends)[1]] = self.now
            if until >= step and min(next_end, next_leave) > step:
                return
