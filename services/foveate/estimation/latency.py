"""Predicts the seconds of a batch: seeded from the profile, refitted after every batch."""

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from foveate.core.model import Rung
from foveate.core.plan import Plan

PlanTimes = Mapping[Plan, Mapping[int, float]]
"""Seconds of a batch by plan and batch size."""

RATIO_WINDOW = 5
"""Batches in the running median of the slowdown: two outliers among them change nothing, and three batches
after a change the new slowdown is known."""
POINT_GAIN = 0.1
"""Gain with which a batch moves the point of its plan and size."""
MAX_LOG_STEP = 0.2
"""Largest deviation of a batch that counts (natural logarithm): a stalled batch says little."""
SEED_PULL = 0.01
"""Share by which every batch moves its point back to its seed. Without it, the points and the slowdown could
drift apart without bound while their product stays right."""
MAX_WEIGHT = 20.0
"""Largest weight of a point that batches have refined; a point of the profile has weight 1."""
GUESS_WEIGHT = 0.1
"""Weight of a point of a plan that was never measured and is assumed to cost as much as full."""
FIRST_RUN_WEIGHT = 0.5
"""Weight of a guessed point after one batch. The batch may have stalled: the faster of two counts."""
ERROR_GAIN, MIN_MARGIN, MAX_MARGIN = 0.05, 0.05, 0.5
"""Gain of the mean error, and the bounds of the safety margin that follows from it."""
AMORTIZED_SHARE = 0.05
"""A batch is large enough once its fixed cost per item is this share of the cost of one more item."""
DEFAULT_LATENCY_S = {1: 0.02, 32: 0.16}
"""Stands in for the latency of full where it was never measured: batching is then assumed to pay."""
MAX_EXTRA_PLANS = 256
"""Plans besides the ladder's whose times are kept; the least recently run one is dropped first."""


@dataclass(frozen=True, slots=True)
class LatencyLine:
    """Seconds of a batch as a function of its size: fixed_s + item_s * size."""

    fixed_s: float
    item_s: float

    def at(self, size: int) -> float:
        """Seconds of a batch of this size."""
        return self.fixed_s + self.item_s * size


@dataclass(slots=True)
class _TimedSize:
    """The seconds of batches of one size, and the weight of this point in the fit."""

    seconds: float
    weight: float
    seed_s: float
    """The first value of `seconds`."""


def fit_line(points: Mapping[int, _TimedSize]) -> LatencyLine:
    """The best line through the points, by batch size, with a slope and an intercept of at least 0.

    Points are weighted by the inverse of their square too, so that the relative error of a single item
    counts as much as that of a large batch.
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
    item_s = (w * ny - n * y) / spread if spread > 1e-9 * w * nn else -1.0
    fixed_s = (y - item_s * n) / w
    if fixed_s < 0 or len(points) == 1:
        return LatencyLine(0.0, ny / nn)
    return LatencyLine(fixed_s, item_s) if item_s >= 0 else LatencyLine(y / w, 0.0)


def _current_latency(rung: Rung, ladder: Sequence[Rung], times: PlanTimes) -> Mapping[int, float] | None:
    """Seconds of a batch of a rung on this machine, by size.

    Either as measured now, or the profile's times scaled like those of the measured rung that is nearest in
    cost.
    """
    if times.get(rung.plan) or not rung.latency_s:
        return times.get(rung.plan)
    measured = [other for other in ladder if times.get(other.plan) and other.latency_s]
    if not measured:
        return rung.latency_s
    nearest = min(measured, key=lambda other: log_ratio(other.gflops, rung.gflops))
    now, profiled = times[nearest.plan], nearest.latency_s or {}
    slowdowns = [now[size] / profiled[size] for size in now.keys() & profiled.keys()]
    return {size: seconds * statistics.median(slowdowns or [1.0]) for size, seconds in rung.latency_s.items()}


def log_ratio(a: float, b: float) -> float:
    """Distance of two costs: the absolute logarithm of their ratio. Defined for a cost of 0 too."""
    return abs(math.log(max(a, 1e-9) / max(b, 1e-9)))


class Predictor(Protocol):
    """The part of a latency model that a policy uses."""

    @property
    def version(self) -> int:
        """Changes whenever a prediction may have changed."""
        ...

    @property
    def safety_factor(self) -> float:
        """Factor by which a prediction is multiplied so that a batch seldom takes longer."""
        ...

    def predict(self, plan: Plan, size: int) -> float:
        """Seconds of a batch of this size under a plan."""
        ...

    def efficient_batch_size(self, plan: Plan, max_batch: int) -> int:
        """The size, at most `max_batch`, beyond which a larger batch hardly makes an item cheaper."""
        ...

    def is_warm(self, plan: Plan) -> bool:
        """Whether a batch of this plan runs without set-up, so that a policy may choose the plan."""
        ...


class LatencyModel:
    """latency(plan, size) = slowdown * (fixed_s + item_s * size).

    `slowdown` is common to all plans and follows the machine within a few batches. The line of each plan
    moves slowly, by the deviation of the plan's own batches beyond the slowdown.
    """

    def __init__(
        self,
        ladder: Sequence[Rung],
        times: PlanTimes | None = None,
        default_s: Mapping[int, float] = DEFAULT_LATENCY_S,
    ) -> None:
        """times: batch seconds measured on this machine; they take precedence over the ladder's. default_s:
        stands in for the latency of full where it was never measured."""
        self._lines: OrderedDict[Plan, LatencyLine] = OrderedDict()
        self._points: dict[Plan, dict[int, _TimedSize]] = {}
        self._ratios: deque[float] = deque([1.0] * (RATIO_WINDOW // 2), RATIO_WINDOW)
        self.slowdown = 1.0
        self.version = 0
        self._mean_error = 0.0
        full, self._ladder = ladder[-1], frozenset(rung.plan for rung in ladder)
        self._full_gflops, self._full_side = full.gflops, full.plan.image_size
        self._full_latency_s = dict((times or {}).get(full.plan) or full.latency_s or default_s)
        for rung in ladder:
            self._seed(replace(rung, latency_s=_current_latency(rung, ladder, times or {})))

    def _seed(self, rung: Rung) -> None:
        if rung.latency_s:
            self._store(rung.plan, {size: _TimedSize(s, 1.0, s) for size, s in rung.latency_s.items()})
        else:
            self._guess(rung.plan, rung.gflops / self._full_gflops if self._full_gflops else 1.0)

    def _guess(self, plan: Plan, cost_ratio: float = 1.0) -> None:
        """Seed a plan that was never measured with this multiple of the times of full."""
        times = {size: cost_ratio * seconds for size, seconds in self._full_latency_s.items()}
        self._store(plan, {size: _TimedSize(s, GUESS_WEIGHT, s) for size, s in times.items()})

    def _store(self, plan: Plan, points: dict[int, _TimedSize]) -> None:
        self._points[plan], self._lines[plan] = points, fit_line(points)
        self._lines.move_to_end(plan)
        if len(self._lines) > len(self._ladder) + MAX_EXTRA_PLANS:
            oldest = next(plan for plan in self._lines if plan not in self._ladder)
            del self._points[oldest], self._lines[oldest]

    def _line(self, plan: Plan) -> LatencyLine:
        """The line without the slowdown.

        An unmeasured plan costs as much as full until it runs; one of larger images more, by their area.
        """
        if plan not in self._lines:
            self._guess(plan, max(1.0, (plan.image_size / self._full_side) ** 2))
        return self._lines[plan]

    def learn(self, plan: Plan, times: Mapping[int, float]) -> None:
        """Replace what is known about a plan by batch seconds by size, measured on this machine just now."""
        self._store(plan, {size: _TimedSize(s, 1.0, s) for size, s in times.items()})
        self.version += 1

    def is_warm(self, plan: Plan) -> bool:
        """True: a latency model alone knows no set-up."""
        return True

    def item_s(self, plan: Plan) -> float:
        """Seconds by which one more item lengthens a batch."""
        return self.slowdown * self._line(plan).item_s

    def predict(self, plan: Plan, size: int) -> float:
        """Seconds of a batch of this size under a plan."""
        return self.slowdown * self._line(plan).at(size)

    @property
    def safety_factor(self) -> float:
        """Factor by which a prediction is multiplied so that a batch seldom takes longer."""
        return 1.0 + min(MAX_MARGIN, max(MIN_MARGIN, 2 * self._mean_error))

    def efficient_batch_size(self, plan: Plan, max_batch: int) -> int:
        """The size, at most `max_batch`, beyond which a larger batch hardly makes an item cheaper."""
        line = self._line(plan)
        amortized_s = AMORTIZED_SHARE * line.item_s
        if line.fixed_s <= amortized_s:
            return 1
        return min(max_batch, math.ceil(line.fixed_s / amortized_s)) if line.item_s else max_batch

    def observe(self, plan: Plan, size: int, seconds: float) -> float:
        """Learn from a batch that has run. Returns its seconds over the predicted seconds."""
        base_s = self._line(plan).at(size)
        ratio = seconds / (self.slowdown * base_s)
        self._mean_error += ERROR_GAIN * (min(abs(math.log(ratio)), MAX_MARGIN) - self._mean_error)
        points = self._points[plan]
        guessed = any(point.weight < 1 for point in points.values())
        if guessed and (size not in points or points[size].weight < 1):
            self._observe_guessed(points, size, seconds / self.slowdown, base_s)
        else:  # the first batches of a guessed plan carry no information about the machine
            self._ratios.append(seconds / base_s)
            self.slowdown = statistics.median(self._ratios)
            self._refine(points, size, seconds / self.slowdown, base_s)
        self._store(plan, points)
        self.version += 1
        return ratio

    @staticmethod
    def _observe_guessed(points: dict[int, _TimedSize], size: int, seconds: float, guess_s: float) -> None:
        """Learn from one of the first two batches of a size whose latency was guessed.

        Either may have stalled, so the faster of the two counts. Once another size of the plan has run, the
        first batch can only lower the guess: if the first large batch stalled and its time were believed,
        no second large batch would ever be made.
        """
        any_known = len(points) > sum(point.weight == GUESS_WEIGHT for point in points.values())
        first_run = points.get(size)
        if first_run is not None and first_run.weight == FIRST_RUN_WEIGHT:
            best_s = min(seconds, first_run.seed_s)
            points[size] = _TimedSize(best_s, 1.0, best_s)
            return
        believed_s = min(seconds, guess_s) if any_known else seconds
        for point in points.values():  # assume that the other guesses were wrong by the same factor
            if point.weight == GUESS_WEIGHT:
                point.seconds = point.seed_s = point.seconds * believed_s / guess_s
        points[size] = _TimedSize(believed_s, FIRST_RUN_WEIGHT, seconds)

    def decay(self) -> None:
        """Move the slowdown back towards 1: what is known about the machine may be out of date."""
        self._ratios.append(1.0)
        self.slowdown = statistics.median(self._ratios)
        self.version += 1

    @staticmethod
    def _refine(points: dict[int, _TimedSize], size: int, seconds: float, predicted_s: float) -> None:
        """Move the point of this size towards the seconds of a batch."""
        point = points.setdefault(size, _TimedSize(predicted_s, 1.0, predicted_s))
        error = math.log(seconds / point.seconds)
        to_seed = math.log(point.seed_s / point.seconds)
        step = max(-MAX_LOG_STEP, min(MAX_LOG_STEP, error))
        point.seconds *= math.exp(POINT_GAIN * step + SEED_PULL * to_seed)
        point.weight = min(MAX_WEIGHT, point.weight + 1)
