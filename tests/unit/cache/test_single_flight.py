"""Single flight: concurrent requests share one computation, and low quality is replaced."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from foveate.cache.entry import CacheEntry
from foveate.cache.memory import MemoryCache
from foveate.cache.single_flight import DEGRADED_TTL_S, SingleFlight

pytestmark = pytest.mark.anyio


def single_flight(cache: MemoryCache | None = None) -> SingleFlight:
    return SingleFlight(MemoryCache(2**20) if cache is None else cache, "t", 60, 2**20)


def counted_compute(
    quality: float = 1.0, duration_s: float = 0.05
) -> tuple[list[float], Callable[[], Awaitable[CacheEntry]]]:
    """The start times of all computations, and a function that computes an entry of this quality."""
    starts: list[float] = []

    async def compute() -> CacheEntry:
        starts.append(time.monotonic())
        number = len(starts)
        await asyncio.sleep(duration_s)
        return CacheEntry(quality, {"n": number})

    return starts, compute


def at_least(quality: float) -> Callable[[CacheEntry], bool]:
    return lambda entry: entry.quality >= quality


async def test_concurrent_requests_share_one_computation() -> None:
    flights, (starts, compute) = single_flight(), counted_compute()
    entries = await asyncio.gather(
        *(flights.get_or_compute("k", at_least(0), None, compute) for _ in range(10))
    )
    assert [result for _, result in entries] == ["miss"] + 9 * ["coalesced"]
    assert len(starts) == 1
    assert (await flights.get_or_compute("k", at_least(1), None, compute))[1] == "hit"
    await flights.get_or_compute("other", at_least(0), None, compute)
    assert len(starts) == 2


async def test_an_entry_that_is_not_accepted_is_computed_again_and_replaced() -> None:
    flights, (poor_starts, poor), (starts, full) = single_flight(), counted_compute(0.8), counted_compute(1.0)
    concurrent = asyncio.gather(
        flights.get_or_compute("k", at_least(0), None, poor),
        flights.get_or_compute("k", at_least(0.9), None, full),
    )
    (_, first), (better, second) = await concurrent
    assert (first, second, better.quality) == ("miss", "miss", 1.0)
    assert (await flights.get_or_compute("k", at_least(0.7), None, poor))[1] == "hit"
    entry, result = await flights.get_or_compute("k", at_least(0.9), None, full)
    assert (result, entry.quality) == ("hit", 1.0)
    assert (await flights.get_or_compute("k", at_least(0.7), None, poor))[0].quality == 1.0
    assert len(poor_starts) == len(starts) == 1


async def test_an_entry_below_full_quality_is_stored_for_seconds_only() -> None:
    now = [0.0]
    flights, (_, compute) = single_flight(MemoryCache(2**20, lambda: now[0])), counted_compute(0.8, 0)
    await flights.get_or_compute("k", at_least(0), None, compute)
    now[0] = DEGRADED_TTL_S - 0.1
    assert (await flights.get_or_compute("k", at_least(0), None, compute))[1] == "hit"
    now[0] = DEGRADED_TTL_S
    assert (await flights.get_or_compute("k", at_least(0), None, compute))[1] == "miss"


async def test_another_request_computes_if_the_first_fails_or_is_cancelled() -> None:
    flights, (starts, compute) = single_flight(), counted_compute()

    async def failing() -> CacheEntry:
        await asyncio.sleep(0.05)
        raise ValueError("broken")

    async def endless() -> CacheEntry:
        await asyncio.sleep(60)
        raise AssertionError

    for first_compute in (failing, endless):
        key = first_compute.__name__
        first = asyncio.create_task(flights.get_or_compute(key, at_least(0), None, first_compute))
        await asyncio.sleep(0.01)
        others = [
            asyncio.create_task(flights.get_or_compute(key, at_least(0), None, compute)) for _ in range(5)
        ]
        await asyncio.sleep(0.01)
        if first_compute is endless:
            first.cancel()
        entries = await asyncio.gather(*others)
        assert sorted(result for _, result in entries) == 4 * ["coalesced"] + ["miss"]
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], BaseException)
    assert len(starts) == 2


async def test_a_request_waits_for_half_of_its_time_and_then_computes_too() -> None:
    flights, (starts, slow) = single_flight(), counted_compute(duration_s=1.0)
    first = asyncio.create_task(flights.get_or_compute("k", at_least(0), None, slow))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    _, quick = counted_compute(duration_s=0)
    assert (await flights.get_or_compute("k", at_least(0), began + 0.4, quick))[1] == "miss"
    assert 0.15 < time.monotonic() - began < 0.35
    assert (await first)[1] == "miss" and len(starts) == 1


async def test_large_entries_are_not_stored_and_short_lived_ones_for_seconds_only() -> None:
    now = [0.0]
    flights = SingleFlight(MemoryCache(2**20, lambda: now[0]), "t", 60, 100)
    await flights.put("large", CacheEntry(1.0, {}, (bytes(60), bytes(41))))
    assert await flights.get("large") is None
    await flights.put("short_lived", CacheEntry(1.0, {}, (b"x",), short_lived=True))
    assert await flights.get("short_lived") == CacheEntry(1.0, {}, (b"x",))
    now[0] = DEGRADED_TTL_S
    assert await flights.get("short_lived") is None


async def test_cancelling_a_waiting_request_does_not_affect_the_computation() -> None:
    flights, (starts, compute) = single_flight(), counted_compute()
    first = asyncio.create_task(flights.get_or_compute("k", at_least(0), None, compute))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(flights.get_or_compute("k", at_least(0), None, compute))
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert (await first)[1] == "miss" and len(starts) == 1
