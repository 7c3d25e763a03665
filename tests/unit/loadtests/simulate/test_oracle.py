"""The oracle's bound against hand-made cases and against every schedule there is."""

import itertools
from functools import cache

import numpy as np
import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from loadtests.arrivals import schedule
from loadtests.simulate.__main__ import read_rungs
from loadtests.simulate.baselines import policies
from loadtests.simulate.machine import NO_DISTURBANCE, Disturbance
from loadtests.simulate.oracle import hull, max_work, upper_bound
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import RequestClass, Workload

RUNGS = (
    Rung(Plan("tiny", 32, reducer="evit:0.2"), 0.1, 5, 0.6, {1: 2.0, 2: 3.0, 3: 4.0}),
    Rung(Plan("tiny", 32, reducer="evit:0.5"), 0.25, 5, 0.8, {1: 3.0, 2: 5.0, 3: 7.0}),
    Rung(Plan("tiny", 32), 1.0, 10, 1.0, {1: 5.0, 2: 9.0, 3: 13.0}),
)
WORLD = World(RUNGS, max_batch=3, disturbance=NO_DISTURBANCE)


def best_schedule(workload: Workload) -> float:
    """The highest utility of all schedules: all orders of batches, members and rungs, on whole seconds."""
    table = WORLD.batch_table
    at, deadline = workload.at, workload.deadline
    min_rungs = [workload.classes[k].min_quality for k in workload.class_index]

    @cache
    def best(now: float, left: frozenset[int]) -> float:
        max_utility = 0.0
        for size in range(1, WORLD.max_batch + 1):
            for batch in itertools.combinations(sorted(left), size):
                start = max(now, *(at[i] for i in batch)) if batch else now
                for rung in RUNGS:
                    done = start + table[rung.plan][size]
                    quality = rung.quality or 0.0
                    gained = sum(quality for i in batch if done <= deadline[i] and quality >= min_rungs[i])
                    if gained:
                        max_utility = max(max_utility, gained + best(done, left - set(batch)))
        return max_utility

    return best(0.0, frozenset(range(len(workload))))


def test_the_hull_drops_rungs_below_it_and_the_part_that_does_not_rise() -> None:
    assert hull([1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.9, 0.9]) == [(0.0, 0.0), (1.0, 0.5), (3.0, 0.9)]
    assert hull([2.0, 1.0], [1.0, 0.2]) == [(0.0, 0.0), (2.0, 1.0)]


def test_max_work_by_hand() -> None:
    release, deadline = np.array([0.0, 0.0, 1.0]), np.array([4.0, 2.0, 2.0])
    assert max_work(release, deadline, np.array([9.0, 9.0, 9.0])) == 4.0
    assert max_work(release, deadline, np.array([1.0, 1.0, 9.0])) == 3.0
    assert max_work(np.array([0.0, 5.0]), np.array([1.0, np.inf]), np.array([3.0, 3.0])) == 4.0


def test_max_work_is_a_maximum_matching_of_unit_slots() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        n = int(random.integers(1, 5))
        release = np.sort(random.integers(0, 6, n)).astype(float)
        deadline = release + random.integers(0, 5, n).astype(float)
        cap = random.integers(0, 4, n).astype(float)
        units = [
            (int(r), int(d)) for r, d, c in zip(release, deadline, cap, strict=True) for _ in range(int(c))
        ]
        # Hall: the work that cannot be done is the largest excess of units over the seconds in their windows.
        lost = max(
            len(some) - len({t for r, d in some for t in range(r, d)})
            for size in range(len(units) + 1)
            for some in itertools.combinations(units, size)
        )
        assert max_work(release, deadline, cap.astype(float)) == pytest.approx(len(units) - lost)


def test_without_contention_the_bound_is_full_quality() -> None:
    workload = Workload.draw(np.array([0.0, 50.0]), [RequestClass(20.0)], 0)
    assert upper_bound(WORLD, workload) == pytest.approx(2.0)


def test_simultaneous_requests_share_the_time_along_the_hull() -> None:
    workload = Workload.draw(
        np.zeros(3), [RequestClass(4.0)], 0
    )  # 4/3 s each: the cheapest rung in a batch of three
    assert upper_bound(WORLD, workload) == pytest.approx(3 * 0.6)
    workload = Workload.draw(
        np.zeros(3), [RequestClass(5.5)], 0
    )  # half of the additional time of the next rung
    assert upper_bound(WORLD, workload) == pytest.approx(3 * 0.7)


def test_a_minimum_quality_excludes_the_rungs_below_it() -> None:
    workload = Workload.draw(np.zeros(3), [RequestClass(13.0 / 3, 0.9)], 0)
    assert upper_bound(WORLD, workload) == pytest.approx(1.0)  # one of three at full


def test_the_best_schedule_comes_near_the_bound_and_does_not_exceed_it() -> None:
    random, ratios = np.random.default_rng(1), []
    classes = [RequestClass(4.0), RequestClass(7.0, 0.7), RequestClass(12.0, 0.9), RequestClass(9.0)]
    for seed in range(40):
        at = np.sort(random.integers(0, 8, 4)).astype(float)
        workload = Workload.draw(at, classes, seed)
        best, bound = best_schedule(workload), upper_bound(WORLD, workload)
        assert best <= bound + 1e-9
        ratios.append(best / bound)
    assert float(np.mean(ratios)) > 0.8


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("name", list(policies(1.0)))
def test_no_policy_exceeds_the_bound(name: str, replicas: int) -> None:
    world = World(read_rungs("vit-t"), replicas=replicas, disturbance=Disturbance(2.0, 0.0, 0.0))
    for load in (0.5, 4.0, 20.0):
        at = schedule("poisson", load * world.full_rate, 1.0, 0)
        workload = Workload.draw(at, [RequestClass(0.1), RequestClass(0.4, 0.97)], 0)
        record = simulate(world, policies(0.1)[name], workload, 0)
        assert record.utility <= upper_bound(world, workload) * (1 + 1e-9)
