"""A simulation: outcomes and the order of events, by hand on tiny ladders."""

from collections.abc import Sequence

import numpy as np
import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import BatchDecision, Policy, QueuedT, Refusal
from loadtests.arrivals import schedule
from loadtests.simulate.__main__ import read_rungs
from loadtests.simulate.baselines import policies
from loadtests.simulate.machine import NO_DISTURBANCE, Disturbance
from loadtests.simulate.record import End, SimulationRecord
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import RequestClass, Workload

FULL = Plan("tiny", 32)
LIGHT = Plan("tiny", 32, reducer="evit:0.5")
RUNGS = (
    Rung(LIGHT, 0.25, 5, 0.8, {1: 0.25, 2: 0.5}),
    Rung(FULL, 1.0, 10, 1.0, {1: 1.0, 2: 2.0}),
)
WORLD = World(RUNGS, max_batch=2, disturbance=NO_DISTURBANCE)
INFINITE = float("inf")


def requests_at(at: Sequence[float], slo_s: float = INFINITE, min_quality: float = 0.0) -> Workload:
    return Workload.draw(np.array(at), [RequestClass(slo_s, min_quality)], 0)


def ends(record: SimulationRecord) -> list[End]:
    return [End(int(end)) for end in record.end]


class OneByOne(Fifo):
    """Batches of one request."""

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        return BatchDecision((waiting[0],), self.plan, True) if waiting else None


class PreferNewest(OneByOne):
    """A candidate displaces the first waiting request."""

    def admit(
        self,
        candidate: QueuedT,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> Refusal[QueuedT] | None:
        return Refusal(waiting[0], free_at - now, 0.0) if waiting else None


class NeverServe(OneByOne):
    """Admits requests and runs none."""

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        return None


def test_a_batch_takes_the_requests_that_wait_when_the_machine_is_free() -> None:
    record = simulate(WORLD, Fifo, requests_at([0.0, 0.5, 0.6, 0.7]), 0)
    # Request 0 runs until 1 s, requests 1 and 2 together until 3 s, request 3 until 4 s.
    assert record.latency_s == pytest.approx([1.0, 2.5, 2.4, 3.3])
    assert (record.batches, record.ran) == (3, 4)
    assert record.attainment == 1.0 and record.utility == 4.0


def test_a_prefetched_batch_is_not_overtaken_by_a_more_urgent_request() -> None:
    workload = Workload(
        np.array([0.0, 0.1, 0.2]), (RequestClass(50.0), RequestClass(50.0, priority=9)), np.array([0, 0, 1])
    )
    record = simulate(WORLD, OneByOne, workload, 0)
    assert record.latency_s == pytest.approx([1.0, 1.9, 2.8])


def test_priority_moves_a_request_forward() -> None:
    workload = Workload(
        np.array([0.0, 0.1, 0.2, 0.3]),
        (RequestClass(50.0), RequestClass(50.0, priority=9)),
        np.array([0, 0, 0, 1]),
    )
    record = simulate(WORLD, OneByOne, workload, 0)
    assert record.latency_s == pytest.approx([1.0, 1.9, 3.8, 2.7])


def test_a_request_that_expires_in_the_queue_costs_no_forward() -> None:
    record = simulate(WORLD, OneByOne, requests_at([0.0, 0.1, 0.2, 0.3], slo_s=1.5), 0)
    # The second request is prefetched and ends at 2.0 s, too late; the others expire in the queue.
    assert ends(record) == [End.MET, End.MISSED, End.MISSED, End.MISSED]
    assert record.ran == 2 and np.isnan(record.latency_s[2:]).all()


def test_a_prefetched_request_that_expires_is_left_out_of_the_forward() -> None:
    record = simulate(WORLD, OneByOne, requests_at([0.0, 0.1, 5.0], slo_s=0.5), 0)
    assert ends(record) == [End.MISSED] * 3
    assert record.ran == 2


def test_a_full_queue_refuses() -> None:
    world = World(RUNGS, 2, max_items=2, disturbance=NO_DISTURBANCE)
    record = simulate(
        world, OneByOne, requests_at([0.0, 0.1, 0.2, 0.3, 0.4]), 0
    )  # one runs, one is prefetched, two wait
    assert ends(record) == [End.MET] * 4 + [End.REFUSED]


def test_a_displaced_request_is_refused() -> None:
    record = simulate(WORLD, PreferNewest, requests_at([0.0, 0.1, 0.2, 0.3]), 0)
    assert ends(record) == [End.MET, End.MET, End.REFUSED, End.MET]


def test_a_request_that_is_never_served_misses_its_deadline() -> None:
    assert ends(simulate(WORLD, NeverServe, requests_at([0.0, 0.1]), 0)) == [End.MISSED] * 2


def test_an_answer_below_the_minimum_quality_does_not_count() -> None:
    record = simulate(WORLD, policies(1.0)["static-light"], requests_at([0.0], min_quality=0.9), 0)
    assert ends(record) == [End.LOW_QUALITY]
    assert (record.attainment, record.utility, record.mean_quality) == (0.0, 0.0, 0.8)


def test_the_latency_model_follows_a_machine_slower_than_its_profile() -> None:
    models: list[Predictor] = []

    def factory(rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> Policy:
        models.append(latency)
        return Fifo(rungs, latency, max_batch)

    world = World(RUNGS, 2, disturbance=Disturbance(3.0, 0.0, 0.0))
    simulate(world, factory, requests_at([5.0 * i for i in range(50)]), 0)
    assert models[0].predict(FULL, 1) == pytest.approx(3.0, rel=0.01)
    assert models[0].predict(LIGHT, 1) == pytest.approx(0.75, rel=0.1)


def test_two_choices_balance_the_replicas() -> None:
    world = World(RUNGS, 2, replicas=8, disturbance=NO_DISTURBANCE)
    record = simulate(world, OneByOne, requests_at([i / 6 for i in range(400)]), 0)
    assert np.nanmax(record.latency_s) < 6.0  # at 3/4 of the capacity of eight replicas


@pytest.mark.parametrize("name", list(policies(1.0)))
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_request_ends_once_and_the_seed_determines_the_record(name: str, replicas: int) -> None:
    world = World(read_rungs("vit-t"), replicas=replicas)
    at = schedule("gamma:2", 3 * world.full_rate, 1.0, 0)
    classes = [
        RequestClass(0.05, tenant="a"),
        RequestClass(0.3, 0.97, 1, "b"),
        RequestClass(INFINITE, share=0.2),
    ]
    workload = Workload.draw(at, classes, 0)
    one, other = (simulate(world, policies(0.05)[name], workload, 5) for _ in range(2))
    assert (one.end != End.NONE).all()
    assert np.array_equal(one.end, other.end) and np.array_equal(one.quality, other.quality)
    assert np.array_equal(one.latency_s, other.latency_s, equal_nan=True)
    in_time = (one.end == End.MET) | (one.end == End.LOW_QUALITY)
    assert (one.latency_s[in_time] <= (workload.deadline - workload.at)[in_time] + 1e-9).all()
    assert sum(one.share(end) for end in End) == pytest.approx(1.0)
