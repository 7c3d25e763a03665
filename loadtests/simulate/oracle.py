"""An upper bound on the utility of any scheduling policy for a workload, with all arrivals known."""

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.scheduling.device_demand import Floats
from foveate.scheduling.policy import min_rung
from loadtests.simulate.run import World
from loadtests.simulate.workload import Workload

Hull = list[tuple[float, float]]
"""Corners (seconds, quality) of a concave function, from (0, 0)."""


def upper_bound(world: World, workload: Workload) -> float:
    """A sum of qualities that no schedule exceeds, on average over the noise.

    Relaxation: charge each request its share of its batch's time. That share is at least the time of one
    request at that rung in the best of all batches, and it lies within the request's window from arrival to
    deadline, because a batch starts after its last request has arrived and ends before its first deadline.
    Any real schedule is therefore feasible for one device that is as fast as all replicas together, switches
    between requests at will (preemptive), spends any amount of time on each (divisible), and always has the
    best cost (perfect batching). The utility of a request is at most the concave hull over the rungs that it
    accepts and over not being served.

    Bound: let s_1 > s_2 > ... be the slopes of all hulls, and W_j the most work that can be done within the
    windows on hull segments at least as steep as s_j. Work w_j at slope s_j adds up to at most W_j over its
    first j terms, so that (Abel summation) sum s_j w_j <= sum (s_j - s_j+1) W_j, which is the value returned.
    It is exact for the relaxed problem: amounts of work feasible within windows form a polymatroid, on which
    greedy is optimal (Federgruen and Groenevelt 1986).
    """
    hulls = [hull(*_accepted(world, each.min_quality)) for each in workload.classes]
    return bound_of(hulls, workload.class_index, workload.at, workload.deadline)


def bound_of(hulls: Sequence[Hull], hull_index: NDArray[np.intp], release: Floats, deadline: Floats) -> float:
    """The bound of `upper_bound`. hull_index: (N,) the hull of each request; release: (N,), sorted."""
    slopes = sorted({slope for corners in hulls for slope in _slopes(corners)}, reverse=True)
    total = 0.0
    for slope, next_slope in zip(slopes, [*slopes[1:], 0.0], strict=True):
        caps = np.array([_cost_down_to(corners, slope) for corners in hulls])[hull_index]
        total += (slope - next_slope) * max_work(release, deadline, caps)
    return total


def best_costs(world: World) -> list[float]:
    """For each rung, the fewest seconds of a request in any batch, on a device as fast as all replicas."""
    speed, table = world.replicas / world.disturbance.slowdown, world.batch_table
    sizes = range(1, world.max_batch + 1)
    return [min(table[rung.plan][n] / n for n in sizes) / speed for rung in world.rungs]


def _accepted(world: World, min_quality: float) -> tuple[Sequence[float], Sequence[float]]:
    """Best costs and qualities of the rungs with at least this quality."""
    first = min_rung(world.rungs, min_quality)
    return best_costs(world)[first:], [rung.quality or 0.0 for rung in world.rungs[first:]]


def hull(cost: Sequence[float], quality: Sequence[float]) -> Hull:
    """The rising part of the smallest concave function that is 0 at 0 and nowhere below a rung.

    cost: seconds of each rung; quality: of each rung.
    """
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
    """Seconds at the end of the part of the hull that is at least this steep."""
    return corners[sum(s >= slope for s in _slopes(corners))][0]


def max_work(release: Floats, deadline: Floats, cap: Floats) -> float:
    """The most seconds of work that one device can do on N requests.

    A request gets at most `cap` seconds of work (N,), between its release (N,), sorted, and its deadline
    (N,). Earliest deadline first with preemption is optimal (Glover 1967: maximum matching of unit slots to
    windows).
    """
    if (deadline[1:] >= deadline[:-1]).all():
        return _max_work_in_order(release, deadline, cap)
    pending: list[tuple[float, float]] = []  # deadline and remaining work of the released requests
    releases = [*release.tolist(), math.inf]
    done, now = 0.0, 0.0
    for at, ends_at, work in zip(releases, [*deadline.tolist(), 0.0], [*cap.tolist(), 0.0], strict=True):
        while pending and now < at:
            first, rest = heapq.heappop(pending)
            spent = min(rest, first - now, at - now)
            if spent <= 0:
                continue  # its deadline has passed
            done, now = done + spent, now + spent
            if rest > spent and now < first:
                heapq.heappush(pending, (first, rest - spent))
        now = max(now, at)
        if work > 0:
            heapq.heappush(pending, (ends_at, work))
    return done


def _max_work_in_order(release: Floats, deadline: Floats, cap: Floats) -> float:
    """As `max_work`, for sorted deadlines: no request overtakes another."""
    done = now = 0.0
    for at, ends_at, work in zip(release.tolist(), deadline.tolist(), cap.tolist(), strict=True):
        start = max(now, at)
        spent = min(ends_at - start, work)
        if spent > 0:
            done, now = done + spent, start + spent
    return done
