"""An upper bound on what any policy could have made of a workload, all arrivals known."""

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtests.simulate.replica import min_rung
from loadtests.simulate.run import World
from loadtests.simulate.workload import Workload

Floats = NDArray[np.float64]
Hull = list[tuple[float, float]]


def upper_bound(world: World, workload: Workload) -> float:
    """No schedule answers requests in time with a greater sum of qualities, on average over the noise.

    Charge every request its share of its batch's time: at least what a picture takes at that rung in the
    best of all batches, and all within the request's own window from arrival to deadline, for a batch
    starts when the last of it is there and ends before the first of it is late. So what any real schedule
    does is feasible for one device as fast as all replicas together, that switches between requests at
    will (preemptive), spends any amount on any of them (divisible) and needs no company for the best
    cost (perfect batching); and its utility is at most that of the concave hull over the rungs that a
    request accepts and over not serving it at all. Let slopes s_1 > s_2 > ... be those of all
    hulls, and W_j the most work that can be done within the windows on hull segments at least as steep as
    s_j. Work w_j at slope s_j adds up to at most W_j over its first j terms, so that (Abel summation)
    sum s_j w_j <= sum (s_j - s_j+1) W_j, which is what is given. It is exact for the relaxed problem:
    amounts of work feasible within windows form a polymatroid, on which greedy is optimal (Federgruen
    and Groenevelt 1986).
    """
    hulls = [hull(*_accepted(world, kind.min_quality)) for kind in workload.kinds]
    slopes = sorted({s for each in hulls for s in _slopes(each)}, reverse=True)
    total = 0.0
    for slope, less in zip(slopes, [*slopes[1:], 0.0], strict=True):
        caps = np.array([_cost_down_to(each, slope) for each in hulls])[workload.kind]
        total += (slope - less) * most_work(workload.at, workload.deadline, caps)
    return total


def best_costs(world: World) -> list[float]:
    """Least seconds a picture takes at each rung in any batch; a device as fast as all replicas."""
    speed, table = world.replicas / world.disturbance.slower, world.costs
    sizes = range(1, world.max_batch + 1)
    return [min(table[rung.plan][n] / n for n in sizes) / speed for rung in world.rungs]


def _accepted(world: World, min_quality: float) -> tuple[Sequence[float], Sequence[float]]:
    least = min_rung(world.rungs, min_quality)
    return best_costs(world)[least:], [rung.quality or 0.0 for rung in world.rungs[least:]]


def hull(cost: Sequence[float], quality: Sequence[float]) -> Hull:
    """Corners (seconds, quality) of the least concave function that is 0 at 0 and nowhere below a rung,
    as far as it rises."""
    corners: Hull = [(0.0, 0.0)]
    for c, q in sorted(zip(cost, quality, strict=True), key=lambda point: (point[0], -point[1])):
        if q <= corners[-1][1]:
            continue
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], (c, q)):
            corners.pop()
        corners.append((c, q))
    return corners


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _slopes(corners: Hull) -> list[float]:
    return [_slope(a, b) for a, b in itertools.pairwise(corners)]


def _cost_down_to(corners: Hull, slope: float) -> float:
    """Where the part of the hull ends that is at least so steep."""
    return corners[sum(s >= slope for s in _slopes(corners))][0]


def most_work(release: Floats, deadline: Floats, cap: Floats) -> float:
    """The most seconds of work that one device does, at most `cap` on each request and only between its
    release and its deadline. Earliest deadline first with preemption does the most (Glover 1967: maximum
    matching of unit slots to windows). release: sorted."""
    if (deadline[1:] >= deadline[:-1]).all():
        return _in_turn(release, deadline, cap)
    pending: list[tuple[float, float]] = []
    starts = [*release.tolist(), math.inf]
    done, now = 0.0, 0.0
    for at, due, left in zip(starts, [*deadline.tolist(), 0.0], [*cap.tolist(), 0.0], strict=True):
        while pending and now < at:
            first, rest = heapq.heappop(pending)
            spent = min(rest, first - now, at - now)
            if spent <= 0:
                continue  # too late for it
            done, now = done + spent, now + spent
            if rest > spent and now < first:
                heapq.heappush(pending, (first, rest - spent))
        now = max(now, at)
        if left > 0:
            heapq.heappush(pending, (due, left))
    return done


def _in_turn(release: Floats, deadline: Floats, cap: Floats) -> float:
    """The same where nobody overtakes: deadlines are sorted too."""
    done = now = 0.0
    for at, due, most in zip(release.tolist(), deadline.tolist(), cap.tolist(), strict=True):
        start = max(now, at)
        left = due - start
        spent = min(left, most)
        if spent > 0:
            done, now = done + spent, start + spent
    return done
