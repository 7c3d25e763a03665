"""Which plans may still become rungs after a few images: pure functions over scores of single images.

Successive halving ("Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016;
"Hyperband", JMLR 2018) with two objectives, quality and GFLOPs. A plan is dropped when the images so far show
that another plan is better, beyond the sampling error. Where a time budget leaves too little time for the
plans that remain, those farthest below the frontier are dropped too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foveate.core.profile import COST_TOLERANCE, GFLOPS_MARGIN

MANY_PLANS = 24
"""With at most this many plans, all are measured on all images."""
STAGE_IMAGES, GROWTH = 32, 4
"""Images of the first stage, and how many times as many each further stage has."""
MAX_STAGE_IMAGES = 512
MIN_STAGE_IMAGES = 8
"""Images of the first stage where the budget is small."""
STANDARD_ERRORS = 2.0
"""A difference of two plans is trusted beyond this many standard errors."""
SMALL_GAIN = 0.005
"""Quality that a plan has to gain over one that costs a quarter less."""
CLEAR_LOSS = 0.02
"""Quality by which a plan is clearly worse than one that costs no more."""
MIN_QUALITY = 0.5
"""A plan that keeps less of full's quality is no use as a rung."""

REDUCER_OVERHEAD, SMALLEST_SHARE = 2.0, 0.1
"""Bounds of the time of a plan, relative to its share of full's GFLOPs, and of this share."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The results of one plan on the first images of the screening."""

    scores: tuple[float, ...] = ()
    """For each image 0 to 1: whether the class is right, or the mean IoU of its mask."""
    gflops: float = 0.0
    """Billions of multiply-adds of all these images together."""
    seconds: float = 0.0

    @property
    def mean_gflops(self) -> float:
        """Billions of multiply-adds of an image."""
        return self.gflops / max(1, len(self.scores))

    @property
    def image_seconds(self) -> float:
        """Seconds of an image in batches."""
        return self.seconds / max(1, len(self.scores))

    def first(self, count: int) -> "Trial":
        """The trial on the first `count` images alone, at the same mean cost."""
        scores = self.scores[:count]
        return Trial(scores, self.mean_gflops * len(scores), self.image_seconds * len(scores))


@dataclass(frozen=True, slots=True)
class DroppedPlan:
    """A plan that is not measured further."""

    plan: str
    stage: str
    """Where it was dropped, as in `screening on 32 images`."""
    reason: str
    better: str = ""
    """The plan that is better; empty if there is none."""
    by_budget: bool = False
    """A larger budget may bring it back."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The trials of a stage as arrays, one entry for each plan, cheapest first."""

    plans: tuple[str, ...]
    scores: NDArray[np.float64] = field(repr=False)
    """(P, N)."""
    gflops: NDArray[np.float64]
    """(P,)."""


def stage_sizes(plans: int, images: int, first: int = STAGE_IMAGES) -> tuple[int, ...]:
    """The number of images of each stage of the screening; empty where it would save nothing.

    The last stage has at most a quarter of the images, as all of them run once more for what remains.
    """
    if plans <= MANY_PLANS or images < 2 * first:
        return ()
    sizes = [first]
    while sizes[-1] * GROWTH <= min(images // 4, MAX_STAGE_IMAGES):
        sizes.append(sizes[-1] * GROWTH)
    return tuple(sizes)


def dominated_plans(trials: Mapping[str, Trial], stage: str, exempt: frozenset[str]) -> list[DroppedPlan]:
    """The plans that the scores rule out. trials: on the same images, with `full`.

    exempt: plans that are never dropped here and beat no other, such as baselines.
    """
    table = _table({plan: trial for plan, trial in trials.items() if plan not in exempt})
    full = table.plans.index("full")
    alive, dropped = np.ones(len(table.plans), bool), []
    for row, plan in enumerate(
        table.plans
    ):  # cheapest first, so that a plan is compared with those that stay
        reason, better = _reason(table, row, full, alive)
        if reason and row != full:
            alive[row] = False
            dropped.append(DroppedPlan(plan, stage, reason, better))
    return dropped


def _table(trials: Mapping[str, Trial]) -> _Table:
    plans = sorted(trials, key=lambda plan: (trials[plan].mean_gflops, plan))
    scores = np.array([trials[plan].scores for plan in plans], np.float64)
    return _Table(tuple(plans), scores, np.array([trials[plan].mean_gflops for plan in plans]))


def _reason(table: _Table, row: int, full: int, alive: NDArray[np.bool_]) -> tuple[str, str]:
    """Why the plan of this row cannot become a rung, and the plan that is better; empty if it may.

    alive: (P,), the plans that it is compared with.
    """
    gflops, own = table.gflops, table.scores[row]
    if gflops[row] > (1 + COST_TOLERANCE) * gflops[full]:
        return "costs more than full", ""
    lost, error = difference(MIN_QUALITY * table.scores[full] - own)
    if lost > STANDARD_ERRORS * error:
        return f"keeps less than {MIN_QUALITY:.0%} of full's quality", ""
    gains, errors = difference(own - table.scores)
    highest = gains + STANDARD_ERRORS * errors
    worse = alive & (gflops <= gflops[row]) & (highest <= -CLEAR_LOSS)
    cheaper = alive & ((1 + GFLOPS_MARGIN) * gflops < gflops[row]) & (highest <= SMALL_GAIN)
    for beaten_by, reason in (
        (worse, "another plan is better for no more compute"),
        (cheaper, f"another plan is as good for over {GFLOPS_MARGIN:.0%} less compute"),
    ):
        beaten_by[row] = False
        if beaten_by.any():
            return reason, table.plans[int(np.where(beaten_by, -gains, -np.inf).argmax())]
    return "", ""


def difference(differences: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard error of differences (..., N) between two plans on the same images: (...) each.

    "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data" (Bonett
    and Price, 2012): one more image on which each of the plans is better, so that plans which agree on few
    images are not taken for equal.
    """
    count = differences.shape[-1] + 2
    mean = differences.sum(-1) / count
    squares = (np.square(differences).sum(-1) + 2) / count
    return mean, np.sqrt(np.maximum(squares - mean**2, 0) / count)


def ranked_by_hypervolume(trials: Mapping[str, Trial]) -> list[str]:
    """The plans in the order in which they deserve time: full, then those that raise the frontier most.

    Each next plan adds the largest area below the frontier of the plans before it, quality over the logarithm
    of the cost (the hypervolume). So the first few plans are spread over the whole frontier. Plans that add
    nothing come last, those closest to the frontier first.
    """
    table = _table(trials)
    means, costs, full = table.scores.mean(1), np.log(table.gflops), table.plans.index("full")
    widths = np.append(np.diff(costs), 0.0)
    at_cost = np.arange(len(costs)) >= np.arange(len(costs))[:, None]  # (P, P): costs at or above the plan's
    frontier, order = np.where(at_cost[full], means[full], 0.0), [full]
    while True:
        areas = (np.maximum(means[:, None] - frontier, 0) * at_cost * widths).sum(1)
        best = int(areas.argmax())
        if areas[best] <= 0:
            break
        order.append(best)
        frontier = np.maximum(frontier, np.where(at_cost[best], means[best], 0.0))
    below = sorted(set(range(len(means))) - set(order), key=lambda row: (frontier[row] - means[row], row))
    return [table.plans[row] for row in (*order, *below)]


def expected_seconds(trials: Mapping[str, Trial], plan: str) -> float:
    """Seconds of an image under a plan, from its trial.

    The first batch of a plan also prepares its kernels, so few images look too expensive. Full has run before
    its trial, and a plan costs at most a few times its share of full's GFLOPs.
    """
    full, trial = trials["full"], trials[plan]
    share = max(trial.mean_gflops / full.mean_gflops, SMALLEST_SHARE)
    return min(trial.image_seconds, REDUCER_OVERHEAD * share * full.image_seconds)


def affordable(plans: Sequence[str], seconds: Mapping[str, float], available_s: float) -> int:
    """How many of the plans, from the first on, fit into the time; the first always does."""
    if math.isinf(available_s):
        return len(plans)
    total, count = 0.0, 0
    for plan in plans:
        total += seconds[plan]
        if total > available_s and count:
            break
        count += 1
    return count
