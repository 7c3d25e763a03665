"""Limits before the engine: admission, spool budget, timeouts and disconnects."""

import asyncio
from time import monotonic

import pytest
from starlette.requests import Request
from starlette.types import Message

from foveate.core.errors import BodyTooLarge, BodyTooSlow, ClientGone, DeadlineExceeded, Overloaded
from foveate.gateway.limits import (
    AdmissionLimiter,
    MemoryBudget,
    SpoolBudget,
    cancel_on_disconnect,
    deadline_timeout,
)


def test_requests_in_flight_are_limited() -> None:
    limiter = AdmissionLimiter(2, 100, 100)
    with limiter.admit(), limiter.admit():
        assert limiter.items == 2
        with pytest.raises(Overloaded, match="2 requests are in flight"), limiter.admit():
            pass
    with limiter.admit():
        assert limiter.items == 1
    assert limiter.items == 0


def test_a_permit_is_returned_after_a_failure() -> None:
    limiter = AdmissionLimiter(2, 100, 100)
    with pytest.raises(RuntimeError), limiter.admit() as permit:
        permit.reserve(60)
        raise RuntimeError
    assert (limiter.items, limiter.bytes) == (0, 0)


def test_body_bytes_are_limited_for_each_request_and_together() -> None:
    limiter = AdmissionLimiter(8, 100, 70)
    with limiter.admit() as first, limiter.admit() as second:
        first.reserve(60)
        first.reserve(50)
        assert limiter.bytes == first.bytes == 60, "a body never shrinks"
        with pytest.raises(BodyTooLarge, match="over 70 bytes"):
            first.reserve(71)
        second.reserve(40)
        with pytest.raises(Overloaded, match="over 100 bytes"):
            second.reserve(41)
        assert limiter.bytes == 100
    assert limiter.bytes == 0


def test_files_of_one_request_have_the_limit_of_a_body_each_and_are_counted_together() -> None:
    limiter = AdmissionLimiter(2, 250, 100)
    with limiter.admit() as permit:
        permit.reserve(50)
        first, second = permit.part(), permit.part()
        for total in (40, 90, 90):
            first.reserve(total)
        assert limiter.bytes == permit.bytes == 140
        with pytest.raises(BodyTooLarge):
            first.reserve(101)
        second.reserve(100)
        with pytest.raises(Overloaded):
            permit.part().reserve(20)
        assert limiter.bytes == permit.bytes == 240
    assert limiter.bytes == 0


def test_the_spool_budget_limits_each_body_and_all_together() -> None:
    budget = SpoolBudget(100, 70)
    budget.check(70)
    with pytest.raises(BodyTooLarge, match="over 70 bytes"):
        budget.check(71)
    budget.reserve(60)
    budget.reserve(40)
    with pytest.raises(Overloaded, match="over 100 bytes"):
        budget.reserve(1)
    assert budget.bytes == 100


@pytest.mark.anyio
async def test_the_deadline_ends_the_work() -> None:
    with pytest.raises(DeadlineExceeded):
        async with deadline_timeout(monotonic() + 0.02, 10.0):
            await asyncio.sleep(10)


@pytest.mark.anyio
async def test_a_deadline_in_the_past_ends_the_work_at_its_first_wait() -> None:
    with pytest.raises(DeadlineExceeded):
        async with deadline_timeout(monotonic() - 1):
            await asyncio.sleep(10)


@pytest.mark.anyio
@pytest.mark.parametrize("deadline_s", [None, 60.0])
async def test_the_timeout_ends_the_work_before_a_later_deadline(deadline_s: float | None) -> None:
    deadline = None if deadline_s is None else monotonic() + deadline_s
    with pytest.raises(BodyTooSlow, match=r"within 0\.02 s"):
        async with deadline_timeout(deadline, 0.02):
            await asyncio.sleep(10)


@pytest.mark.anyio
async def test_without_limits_the_work_is_not_ended() -> None:
    async with deadline_timeout(None):
        await asyncio.sleep(0.01)


def connection(closed: asyncio.Event) -> Request:
    """A request whose client disconnects at the event."""

    async def receive() -> Message:
        await closed.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


@pytest.mark.anyio
async def test_a_disconnect_cancels_the_work() -> None:
    closed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, closed.set)
    with pytest.raises(ClientGone), cancel_on_disconnect(connection(closed)):
        await asyncio.sleep(10)
    await asyncio.sleep(0)  # the task itself is not cancelled any more


@pytest.mark.anyio
async def test_a_disconnect_after_the_work_cancels_nothing() -> None:
    closed = asyncio.Event()
    with cancel_on_disconnect(connection(closed)):
        pass
    closed.set()
    await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_cancellation_from_outside_passes_through() -> None:
    async def work() -> None:
        with cancel_on_disconnect(connection(asyncio.Event())):
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_a_drain_waits_until_no_request_is_in_flight() -> None:
    limiter = AdmissionLimiter(9, 100, 100)
    await limiter.wait_empty(20)
    with limiter.admit():
        with limiter.admit():
            waiting = asyncio.create_task(limiter.wait_empty(20))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        await limiter.wait_empty(0.01)
        assert limiter.items == 1, "the time is over"
    await asyncio.wait_for(waiting, 20)


@pytest.mark.anyio
async def test_shares_of_memory_are_granted_in_order_of_arrival() -> None:
    budget, order = MemoryBudget(100), list[str]()
    gates = {name: asyncio.Event() for name in "abcd"}

    async def work(name: str, needed: int) -> None:
        async with budget.share(needed):
            order.append(name)
            await gates[name].wait()

    tasks = [asyncio.create_task(work(*each)) for each in (("a", 60), ("b", 60), ("c", 40), ("d", 1000))]
    await asyncio.sleep(0.01)
    assert order == ["a"], "c would fit, but b came first"
    gates["a"].set()
    await asyncio.sleep(0.01)
    assert order == ["a", "b", "c"]
    gates["b"].set()
    await asyncio.sleep(0.01)
    assert order == ["a", "b", "c"], "a task that needs more than there is waits for all of it"
    gates["c"].set()
    gates["d"].set()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c", "d"]
    assert budget.free == 100


@pytest.mark.anyio
async def test_a_cancelled_task_gives_its_place_and_its_share_back() -> None:
    budget = MemoryBudget(100)

    async def hold(needed: int) -> None:
        async with budget.share(needed):
            await asyncio.sleep(60)

    first, second, third = (asyncio.create_task(hold(needed)) for needed in (80, 50, 20))
    await asyncio.sleep(0.01)
    assert budget.free == 20, "the third waits behind the second"
    second.cancel()
    await asyncio.sleep(0.01)
    assert budget.free == 0
    for task in (first, third):
        task.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert budget.free == 100


@pytest.mark.anyio
async def test_a_share_of_nothing_never_waits() -> None:
    budget = MemoryBudget(100)
    async with budget.share(100), budget.share(0):
        assert budget.free == 0
