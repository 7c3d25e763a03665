"""The queue: order, capacity, removal."""

import asyncio
from random import Random

import pytest

from foveate.core.errors import DeadlineExceeded, Overloaded
from foveate.engine.queue import QueueEntry, WaitingQueue
from tests.support.engines import make_request
from tests.support.fake_runner import HALF

pytestmark = pytest.mark.anyio


async def entry(virtual_deadline: float, size: int = 1) -> QueueEntry:
    future = asyncio.get_running_loop().create_future()
    return QueueEntry(make_request("a", size=size), virtual_deadline, 0, future, 0.0)


def never() -> float:
    raise AssertionError("the wait is computed for a refusal only")


async def test_entries_are_ordered_by_virtual_deadline_and_then_by_arrival() -> None:
    queue: WaitingQueue[QueueEntry] = WaitingQueue(9, 99)
    late, first, second, early = [await entry(at) for at in (3.0, 2.0, 2.0, 1.0)]
    for each in (late, first, second, early):
        queue.push(each)
    assert list(queue) == queue[:] == [early, first, second, late]
    assert queue[0] is early and late in queue


async def test_removal_among_equal_virtual_deadlines_removes_the_right_entry() -> None:
    queue: WaitingQueue[QueueEntry] = WaitingQueue(999, 9999)
    random = Random(0)
    entries = [await entry(float(random.randrange(4)), size=number) for number in range(200)]
    for each in entries:
        queue.push(each)
    left = sorted(entries, key=lambda each: each.virtual_deadline)
    for each in random.sample(entries, 150):
        queue.remove(each)
        left.remove(each)
        assert list(queue) == left
        assert queue.bytes == sum(other.request.size_bytes for other in left)
    queue.remove(entries[0])
    queue.remove(entries[0])
    assert entries[0] not in queue


async def test_a_full_queue_refuses_with_the_predicted_wait() -> None:
    queue: WaitingQueue[QueueEntry] = WaitingQueue(2, 20)
    queue.check_capacity(1000, never)  # larger than the queue, but the queue is empty
    queue.push(await entry(1.0, size=12))
    queue.check_capacity(8, never)
    with pytest.raises(Overloaded, match="12 bytes") as refused:
        queue.check_capacity(9, lambda: 3.0)
    assert refused.value.retry_after_s == 3.0
    queue.push(await entry(1.0, size=1))
    with pytest.raises(Overloaded, match="2 requests") as refused:
        queue.check_capacity(1, lambda: 4.0)
    assert refused.value.retry_after_s == 4.0


async def test_a_refused_entry_fails_and_leaves_the_queue() -> None:
    queue: WaitingQueue[QueueEntry] = WaitingQueue(9, 99)
    kept, refused = await entry(1.0), await entry(1.0)
    queue.push(kept)
    queue.push(refused)
    queue.refuse(refused, DeadlineExceeded("late"))
    queue.refuse(refused, DeadlineExceeded("a second error changes nothing"))
    assert list(queue) == [kept] and kept.alive and not refused.alive
    with pytest.raises(DeadlineExceeded, match="late"):
        await refused.future


async def test_an_entry_copies_what_a_policy_reads() -> None:
    future = asyncio.get_running_loop().create_future()
    pinned = QueueEntry(make_request("a", HALF, deadline=5.0), 1.0, 1, future, 0.0)
    assert (pinned.deadline, pinned.pinned, pinned.tenant) == (5.0, HALF, "")
    assert (await entry(1.0)).deadline == float("inf")
