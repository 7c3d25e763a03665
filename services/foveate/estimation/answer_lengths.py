"""The lengths of finished answers, from which those of the next ones are expected."""

import math
from bisect import bisect_right, insort
from collections import deque
from itertools import accumulate

WINDOW = 256
"""Answers that count."""
MIN_ANSWERS = 16
"""With fewer finished answers, each is assumed to take all the tokens that it may."""
HIGH_QUANTILE = 0.95
"""The share of answers that are at most as long as a high estimate."""


class AnswerLengths:
    """The lengths of the last answers of one model, in tokens.

    Two estimates serve two purposes. What an answer takes from the others is its mean length: over many
    answers it is right. Whether an answer meets its own deadline is judged by a high quantile: the mean would
    break the promise of every second answer, and `max_tokens`, which clients leave far above what they need,
    would refuse most of what is served in time.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=WINDOW)
        self._sorted: list[int] = []
        self._sums, self._square_sums = [0], [0]

    def record(self, tokens: int) -> None:
        """Count a finished answer of this many tokens."""
        if len(self._recent) == WINDOW:
            self._sorted.remove(self._recent[0])
        self._recent.append(tokens)
        insort(self._sorted, tokens)
        self._sums = [0, *accumulate(self._sorted)]
        self._square_sums = [0, *accumulate(n * n for n in self._sorted)]

    @property
    def known(self) -> bool:
        """Whether enough answers have finished."""
        return len(self._sorted) >= MIN_ANSWERS

    def mean(self, max_tokens: int, generated: int = 0, among: int = 0) -> float:
        """Expected tokens of an answer of at most `max_tokens` that has so many already.

        among: if not 0, the tokens that so many answers together hardly exceed, for each of them: their mean
        and two standard deviations of it.
        """
        if not self.known:
            return float(max_tokens)
        first = bisect_right(self._sorted, generated)
        longer = len(self._sorted) - first
        if not longer:
            return float(min(max_tokens, 2 * generated))
        mean = (self._sums[-1] - self._sums[first]) / longer
        squares = (self._square_sums[-1] - self._square_sums[first]) / longer
        spread = 2 * math.sqrt(max(0.0, squares - mean**2) / among) if among else 0.0
        return max(1.0, min(float(max_tokens), mean + spread))

    def high(self, max_tokens: int, generated: int = 0) -> int:
        """Tokens that an answer has at most with a probability of HIGH_QUANTILE, given those that it has.

        An answer that is longer than all recent ones may double its length.
        """
        if not self.known:
            return max_tokens
        first = bisect_right(self._sorted, generated)
        longer = len(self._sorted) - first
        if not longer:
            return min(max_tokens, 2 * generated)
        return min(max_tokens, self._sorted[first + math.ceil(HIGH_QUANTILE * longer) - 1])
