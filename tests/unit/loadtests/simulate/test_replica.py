"""One replica on a virtual clock: admission, batches and prefetching, event by event."""

import math

import numpy as np
import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import PolicyFactory
from loadtests.simulate.machine import NO_DISTURBANCE, Disturbance, Machine, batch_table
from loadtests.simulate.record import End, SimulationRecord
from loadtests.simulate.replica import Replica
from loadtests.simulate.workload import RequestClass, Workload

FULL, LIGHT = Plan("tiny", 32), Plan("tiny", 32, reducer="evit:0.5")
RUNGS = (
    Rung(LIGHT, 0.25, 5, 0.8, {1: 0.25, 2: 0.5}),
    Rung(FULL, 1.0, 10, 1.0, {1: 1.0, 2: 2.0}),
)
ANY, HIGH = RequestClass(math.inf), RequestClass(math.inf, min_quality=0.9)


def replica(
    policy: PolicyFactory = Fifo, disturbance: Disturbance = NO_DISTURBANCE, max_items: int = 9
) -> Replica:
    record = SimulationRecord(Workload.draw(np.zeros(20), [ANY], 0))
    machine = Machine(batch_table(RUNGS, 2), disturbance, 0)
    return Replica(RUNGS, policy, machine, record, 2, max_items)


def test_an_idle_replica_starts_a_batch_at_once_and_prefetches_a_full_one() -> None:
    one = replica()
    assert one.arrive(one.request(0, 0.0, ANY), 0.0) == 1.0
    for number in range(1, 4):
        assert one.arrive(one.request(number, 0.1, ANY), 0.1) is None
    assert one.held == 4 and len(one.waiting) == 1, "one runs, two are prefetched, one waits"
    assert one.finish(1.0) == 3.0
    assert one.finish(3.0) == 4.0
    assert one.finish(4.0) is None
    assert one.held == 0
    assert one.record.latency_s[:4] == pytest.approx([1.0, 2.9, 2.9, 3.9])


@pytest.mark.parametrize(("request_class", "seconds"), [(ANY, 0.25), (HIGH, 1.0)])
def test_the_predicted_wait_is_that_of_the_cheapest_accepted_plan(
    request_class: RequestClass, seconds: float
) -> None:
    one = replica()
    assert one.predicted_wait(0.0) == 0.0
    one.arrive(one.request(0, 0.0, ANY), 0.0)
    assert one.predicted_wait(0.5) == pytest.approx(0.5)
    one.arrive(one.request(1, 0.5, request_class), 0.5)
    assert one.predicted_wait(0.5) == pytest.approx(0.5 + seconds)


def test_the_gap_between_two_forwards_is_not_part_of_a_batch() -> None:
    one = replica(disturbance=Disturbance(noise=0.0, stall_rate=0.0, gap_s=0.25))
    assert one.arrive(one.request(0, 0.0, ANY), 0.0) == 1.25
    one.finish(1.25)
    assert one.latency.predict(FULL, 1) == pytest.approx(1.0)
    assert one.record.latency_s[0] == 1.25


def test_requests_beyond_the_capacity_of_the_queue_are_refused_without_a_decision() -> None:
    one = replica(max_items=1)
    for number in range(2):  # one runs, one waits
        one.arrive(one.request(number, 0.0, ANY), 0.0)
    decisions = one.record.decisions
    assert one.arrive(one.request(2, 0.0, ANY), 0.0) is None
    assert one.record.end[:3].tolist() == [End.NONE, End.NONE, End.REFUSED]
    assert one.record.decisions == decisions


def test_close_ends_the_waiting_requests() -> None:
    one = replica()
    for number in range(2):
        one.arrive(one.request(number, 0.0, ANY), 0.0)
    one.close()
    assert one.record.end[:2].tolist() == [End.NONE, End.MISSED]
