"""The backlog of one model: predicted waits, and the demand that other models of the device see."""

import asyncio
import math
from dataclasses import replace

import pytest

from foveate.core.errors import DeviceHung
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.backlog import RECENT_S, Backlog
from foveate.engine.batch import ScheduledBatch
from foveate.engine.device import DeviceExecutor
from foveate.engine.queue import QueueEntry, WaitingQueue
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.device_demand import NO_DEMAND
from foveate.scheduling.policy import BatchDecision
from tests.support.engines import make_request
from tests.support.fake_runner import FULL, HALF, RUNGS

pytestmark = pytest.mark.anyio
LADDER = (replace(RUNGS[0], latency_s={1: 0.1, 4: 0.4}), replace(RUNGS[1], latency_s={1: 0.2, 4: 0.8}))
"""0.1 and 0.2 s for each item, whatever the batch."""


class VirtualClock:
    """Seconds that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def backlog_at(clock: VirtualClock) -> Backlog:
    return Backlog(WaitingQueue(99, 999), ThreadSelector(LADDER, {}), LADDER, 4, DeviceExecutor(clock), clock)


async def entry(
    virtual_deadline: float, deadline: float | None = None, min_rung: int = 0, plan: Plan | None = None
) -> QueueEntry:
    request = replace(make_request("a", plan), objective=Objective(deadline))
    return QueueEntry(request, virtual_deadline, min_rung, asyncio.get_running_loop().create_future(), 0.0)


def prefetched(*entries: QueueEntry, predicted_s: float) -> ScheduledBatch:
    return ScheduledBatch(BatchDecision(entries, FULL, True), predicted_s=predicted_s)


async def test_an_empty_backlog_has_no_demand_and_no_wait() -> None:
    backlog = backlog_at(VirtualClock())
    assert backlog.demand is NO_DEMAND
    assert backlog.wait_s() == 0
    assert math.isinf(backlog.virtual_deadline)


async def test_the_wait_is_that_of_the_cheapest_accepted_plans_after_the_running_batch() -> None:
    clock = VirtualClock()
    backlog = backlog_at(clock)
    backlog.queue.push(await entry(1.0))
    backlog.queue.push(await entry(2.0, min_rung=1))
    assert backlog.wait_s() == pytest.approx(0.3)
    backlog.device.set_busy(2.0)
    backlog.prefetched = prefetched(await entry(0.5), predicted_s=0.25)
    assert backlog.free_at == pytest.approx(102.25)
    assert backlog.wait_s() == pytest.approx(2.55)
    clock.now += 5
    assert backlog.wait_s() == pytest.approx(0.55)


async def test_demand_lists_the_queue_in_order_with_the_costs_of_each_request() -> None:
    backlog = backlog_at(VirtualClock())
    backlog.queue.push(await entry(3.0, deadline=3.5, plan=HALF))
    backlog.queue.push(await entry(1.0, deadline=1.5))
    backlog.queue.push(await entry(2.0, min_rung=1))
    demand = backlog.demand
    assert demand.virtual_deadline.tolist() == [1.0, 2.0, 3.0]
    assert demand.deadline.tolist() == [1.5, math.inf, 3.5]
    assert demand.full_s.tolist() == pytest.approx([0.2, 0.2, 0.1])
    assert demand.min_s.tolist() == pytest.approx([0.1, 0.2, 0.1])


async def test_a_prefetched_batch_is_one_request_with_its_tightest_deadline() -> None:
    backlog = backlog_at(VirtualClock())
    backlog.queue.push(await entry(5.0, deadline=6.0))
    first, second = await entry(1.0, deadline=9.0), await entry(2.0, deadline=4.0)
    backlog.prefetched = prefetched(first, second, predicted_s=0.5)
    demand = backlog.demand
    assert demand.virtual_deadline.tolist() == [1.0, 5.0]
    assert demand.deadline.tolist() == [4.0, 6.0]
    assert demand.full_s.tolist() == pytest.approx([0.5, 0.2])
    assert demand.min_s.tolist() == pytest.approx([0.5, 0.1])
    assert backlog.virtual_deadline == 1.0


async def test_recent_arrivals_are_expected_demand_for_a_while() -> None:
    clock = VirtualClock()
    backlog = backlog_at(clock)
    for _ in range(50):
        clock.now += 0.01
        backlog.arrivals.record(clock.now, 0.7)
    demand = backlog.demand
    rate = backlog.arrivals.read(clock.now).rate
    assert rate == pytest.approx(100, rel=0.35)
    assert (demand.full_share, demand.min_share) == pytest.approx((rate * 0.2, rate * 0.1))
    assert demand.allowed_s == pytest.approx(0.7)
    assert len(demand.deadline) == 0
    clock.now += RECENT_S + 0.1
    assert backlog.demand is NO_DEMAND


async def test_two_backlogs_of_a_device_see_each_other() -> None:
    clock = VirtualClock()
    one = backlog_at(clock)
    two = Backlog(WaitingQueue(9, 99), ThreadSelector(LADDER, {}), LADDER, 4, one.device, clock)
    for backlog in (one, two):
        one.device.add_tenant(backlog)
    two.queue.push(await entry(7.0, deadline=8.0))
    assert one.other_demand.deadline.tolist() == [8.0]
    assert not two.other_demand.active


async def test_an_efficient_batch_at_full_has_to_wait_before_one_is_prefetched() -> None:
    backlog = backlog_at(VirtualClock())
    batching = tuple(replace(rung, latency_s={1: 0.1, 4: 0.11}) for rung in LADDER)
    backlog.latency = ThreadSelector(batching, {})
    for number in range(4):
        assert not backlog.full_batch_waits
        backlog.queue.push(await entry(float(number)))
    assert backlog.full_batch_waits


async def test_the_oldest_wait_is_that_of_the_first_admitted_request_that_still_waits() -> None:
    clock = VirtualClock()
    backlog = backlog_at(clock)
    assert backlog.oldest_wait_s == 0
    oldest, urgent, staged = [await entry(deadline) for deadline in (9.0, 1.0, 2.0)]
    oldest.admitted_at, urgent.admitted_at, staged.admitted_at = 70.0, 90.0, 60.0
    backlog.queue.push(oldest)
    backlog.queue.push(urgent)
    assert backlog.oldest_wait_s == 30
    backlog.prefetched = prefetched(staged, predicted_s=0.5)
    clock.now += 1
    assert backlog.oldest_wait_s == 41
    staged.future.cancel()
    assert backlog.oldest_wait_s == 31, "the client of the prefetched request has left"


async def test_waiting_requests_are_refused_wherever_they_wait() -> None:
    backlog = backlog_at(VirtualClock())
    queued, staged, running = [await entry(float(n)) for n in range(3)]
    backlog.queue.push(queued)
    backlog.prefetched = prefetched(staged, predicted_s=0.5)
    backlog.unfinished |= {queued, staged, running}
    error = DeviceHung("no")
    backlog.refuse_waiting(error)
    assert queued.future.exception() is staged.future.exception() is error
    assert running.alive and not len(backlog.queue)
