"""The lengths of finished answers, from which those of the next ones are expected."""

import math
from bisect import bisect_right, insort
from collections import deque

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

    def record(self, tokens: int) -> None:
        """Count a finished answer of this many tokens."""
        if len(self._recent) == WINDOW:
            self._sorted.remove(self._recent[0])
        self._recent.append(tokens)
        insort(self._sorted, tokens)

    @property
    def known(self) -> bool:
        """Whether enough answers have finished."""
        return len(self._sorted) >= MIN_ANSWERS

    def mean(self, max_tokens: int) -> float:
        """Expected tokens of an answer of at most `max_tokens`."""
        if not self.known:
            return float(max_tokens)
        return max(1.0, min(float(max_tokens), sum(self._sorted) / len(self._sorted)))

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
