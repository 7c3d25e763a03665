"""How long a batch will take: seeded from the profile, refitted as batches run."""

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from foveate.core.model import Rung
from foveate.core.plan import Plan

PlanTimes = Mapping[Plan, Mapping[int, float]]
"""Seconds of a batch by plan and size."""

RECENT = 5
"""Batches whose median says how much slower than its profile the machine is now: two outliers among them
say nothing, and three batches after a change it is known in full."""
GAIN = 0.1
"""How far a batch moves what is known of its plan at its size."""
STEP = 0.2
"""A batch counts as off by this much at most (natural logarithm): one that stalled teaches little."""
LEAK = 0.01
"""How far it goes back to where it began with every batch: else it and `machine` could drift apart without
end, their product staying right."""
TRUSTED = 20.0
"""The most that batches of one size count for, beside 1 for a point of the profile."""
GUESSED = 0.1
"""What a point counts for where a plan was never measured, and full's times stand in."""
SEEN_ONCE = 0.5
"""What it counts for after one batch, which may have been held up: the better of two is believed."""
ERROR_GAIN, LEAST_MARGIN, MOST_MARGIN = 0.05, 0.05, 0.5
"""How fast the mean error follows the last one, and the margins it can lead to."""
BATCHED = 0.05
"""The fixed cost of a batch is well spread once it is this share of the rest."""
UNMEASURED = {1: 0.02, 32: 0.16}
"""Stands in for full where it was never measured: batches are then taken to be worth making."""
KNOWN = 256
"""Plans besides the ladder's whose times are kept; those that ran longest ago are forgotten first."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a batch: fixed + each * size."""

    fixed: float
    each: float

    def at(self, size: int) -> float:
        return self.fixed + self.each * size


@dataclass(slots=True)
class _Point:
    """What batches of one size take, and how much that counts for."""

    seconds: float
    weight: float
    start: float
    """The seconds it began with."""


def fitted(points: Mapping[int, _Point]) -> Line:
    """The best line through the points of those that never fall and start at no less than 0.

    Points weigh by the inverse of their square too, so that the error of a lone picture counts for as
    much as that of a large batch.
    """
    w = n = nn = y = ny = 0.0
    for size, point in points.items():
        weight = point.weight / point.seconds**2
        w += weight
        n += weight * size
        nn += weight * size**2
        y += weight * point.seconds
        ny += weight * size * point.seconds
    spread = w * nn - n**2
    each = (w * ny - n * y) / spread if spread > 1e-9 * w * nn else -1.0
    fixed = (y - each * n) / w
    if fixed < 0 or len(points) == 1:
        return Line(0.0, ny / nn)
    return Line(fixed, each) if each >= 0 else Line(y / w, 0.0)


def _as_now(rung: Rung, ladder: Sequence[Rung], times: PlanTimes) -> Mapping[int, float] | None:
    """What batches of a rung take now: measured, or its profile's times with those of the nearest rung
    that was measured, in proportion."""
    if times.get(rung.plan) or not rung.latency_s:
        return times.get(rung.plan)
    known = [other for other in ladder if times.get(other.plan) and other.latency_s]
    if not known:
        return rung.latency_s
    near = min(known, key=lambda other: apart(other.gflops, rung.gflops))
    now, then = times[near.plan], near.latency_s or {}
    slower = [now[size] / then[size] for size in now.keys() & then.keys()]
    return {size: seconds * statistics.median(slower or [1.0]) for size, seconds in rung.latency_s.items()}


def apart(one: float, other: float) -> float:
    """How far two costs are from each other, as a ratio's logarithm; some models cost nothing."""
    return abs(math.log(max(one, 1e-9) / max(other, 1e-9)))


class Predictor(Protocol):
    """What a policy asks."""

    @property
    def version(self) -> int:
        """Another one whenever a prediction may have changed."""
        ...

    @property
    def safety_factor(self) -> float:
        """By what a prediction has to be multiplied so that a batch seldom takes longer."""
        ...

    def predict(self, plan: Plan, size: int) -> float:
        """Seconds a batch of this size takes under a plan."""
        ...

    def efficient_batch_size(self, plan: Plan, most: int) -> int:
        """The size, at most `most`, beyond which a larger batch hardly makes a picture cheaper."""
        ...


class LatencyModel:
    """latency(plan, size) = machine * (fixed + each * size).

    `machine`, common to all plans, follows a machine that slows down within a few batches; each plan's
    line moves slowly, by what its own batches took beyond that.
    """

    def __init__(self, ladder: Sequence[Rung], times: PlanTimes | None = None) -> None:
        """times: seconds by plan and batch size as measured just now; they count before the ladder's."""
        self._lines: OrderedDict[Plan, Line] = OrderedDict()
        self._points: dict[Plan, dict[int, _Point]] = {}
        self._recent: deque[float] = deque([1.0] * (RECENT // 2), RECENT)
        self.slowdown = 1.0
        self.version = 0
        self._error = 0.0
        full, self._ladder = ladder[-1], frozenset(rung.plan for rung in ladder)
        self._full_gflops = full.gflops
        self._measured = dict((times or {}).get(full.plan) or full.latency_s or UNMEASURED)
        for rung in ladder:
            self._seed(replace(rung, latency_s=_as_now(rung, ladder, times or {})))

    def _seed(self, rung: Rung) -> None:
        if rung.latency_s:
            self._keep(rung.plan, {size: _Point(s, 1.0, s) for size, s in rung.latency_s.items()})
        else:
            self._guess(rung.plan, rung.gflops / self._full_gflops if self._full_gflops else 1.0)

    def _guess(self, plan: Plan, cheaper: float = 1.0) -> None:
        self._keep(
            plan, {size: _Point(cheaper * s, GUESSED, cheaper * s) for size, s in self._measured.items()}
        )

    def _keep(self, plan: Plan, points: dict[int, _Point]) -> None:
        self._points[plan], self._lines[plan] = points, fitted(points)
        self._lines.move_to_end(plan)
        if len(self._lines) > len(self._ladder) + KNOWN:
            gone = next(plan for plan in self._lines if plan not in self._ladder)
            del self._points[gone], self._lines[gone]

    def _line(self, plan: Plan) -> Line:
        """A plan that nobody measured is taken to be as dear as full, until it has run."""
        if plan not in self._lines:
            self._guess(plan)
        return self._lines[plan]

    def line(self, plan: Plan) -> Line:
        """What a batch takes now, by its size."""
        line = self._line(plan)
        return Line(self.slowdown * line.fixed, self.slowdown * line.each)

    def predict(self, plan: Plan, size: int) -> float:
        """Seconds a batch of this size takes under a plan."""
        return self.slowdown * self._line(plan).at(size)

    @property
    def safety_factor(self) -> float:
        """By what a prediction has to be multiplied so that a batch seldom takes longer."""
        return 1.0 + min(MOST_MARGIN, max(LEAST_MARGIN, 2 * self._error))

    def efficient_batch_size(self, plan: Plan, most: int) -> int:
        """The size, at most `most`, beyond which a larger batch hardly makes a picture cheaper."""
        line = self._line(plan)
        if line.fixed <= BATCHED * line.each:
            return 1
        return min(most, math.ceil(line.fixed / (BATCHED * line.each))) if line.each else most

    def observe(self, plan: Plan, size: int, seconds: float) -> float:
        """A batch has run. Gives what it took over what was predicted."""
        base = self._line(plan).at(size)
        ratio = seconds / (self.slowdown * base)
        self._error += ERROR_GAIN * (min(abs(math.log(ratio)), MOST_MARGIN) - self._error)
        points = self._points[plan]
        guessed = any(point.weight < 1 for point in points.values())
        if guessed and (size not in points or points[size].weight < 1):
            self._first(points, size, seconds / self.slowdown, base)
        else:  # the others' first batches tell nothing of the machine
            self._recent.append(seconds / base)
            self.slowdown = statistics.median(self._recent)
            self._learn(points, size, seconds / self.slowdown, base)
        self._keep(plan, points)
        self.version += 1
        return ratio

    @staticmethod
    def _first(points: dict[int, _Point], size: int, seconds: float, guess: float) -> None:
        """The first two batches of a size that was guessed. One may have been held up: the better of two is
        believed, and of one that it was quicker; had the first large batch been held up and were it believed,
        there would not be a second one."""
        known = len(points) > sum(point.weight == GUESSED for point in points.values())
        once = points.get(size)
        if once is not None and once.weight == SEEN_ONCE:
            points[size] = _Point(min(seconds, once.start), 1.0, min(seconds, once.start))
            return
        believed = min(seconds, guess) if known else seconds
        for point in points.values():  # the other guesses were off as much, as far as one can tell
            if point.weight == GUESSED:
                point.seconds = point.start = point.seconds * believed / guess
        points[size] = _Point(believed, SEEN_ONCE, seconds)

    def decay(self) -> None:
        """What is known of the machine may be out of date: it may be as fast as when it was measured."""
        self._recent.append(1.0)
        self.slowdown = statistics.median(self._recent)
        self.version += 1

    @staticmethod
    def _learn(points: dict[int, _Point], size: int, seconds: float, predicted: float) -> None:
        point = points.setdefault(size, _Point(predicted, 1.0, predicted))
        off = math.log(seconds / point.seconds)
        back = math.log(point.start / point.seconds)
        point.seconds *= math.exp(GAIN * max(-STEP, min(STEP, off)) + LEAK * back)
        point.weight = min(TRUSTED, point.weight + 1)
