"""Caches: entries as bytes, the memory of one process, the breaker, and what is run once."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.cache.breaker import FAILURES, MOST_S, PAUSE_S, PROBE_S, Breaker
from foveate.cache.entry import CacheEntry, decode_entry, encode_entry
from foveate.cache.memory import MemoryCache
from foveate.cache.once import DEGRADED_TTL_S, SingleFlight

pytestmark = pytest.mark.anyio

FIELDS = st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers(0, 2**31) | st.text())


@given(st.floats(0, 1), FIELDS, st.lists(st.binary(max_size=40), max_size=4))
def test_an_entry_comes_back_as_it_was(quality: float, fields: dict[str, object], parts: list[bytes]) -> None:
    entry = CacheEntry(quality, fields, tuple(parts))
    assert decode_entry(encode_entry(entry)) == entry


@given(st.binary(max_size=80))
def test_bytes_from_anywhere_are_no_entry(data: bytes) -> None:
    assert decode_entry(data) is None


@given(st.data())
def test_an_entry_that_was_changed_anywhere_is_none(data: st.DataObject) -> None:
    whole = encode_entry(CacheEntry(0.5, {"a": [1, 2]}, (b"one", b"", b"three")))
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))])
    assert decode_entry(whole[:at] + flipped + whole[at + 1 :]) is None
    assert decode_entry(whole[:at]) is None


async def test_memory_keeps_what_was_asked_for_last_within_its_bytes() -> None:
    now = [0.0]
    cache = MemoryCache(30, lambda: now[0])
    for key in "abc":
        await cache.put(key, bytes(9), 10)
    assert cache.bytes == 30
    assert await cache.get("a") == bytes(9)
    await cache.put("d", bytes(9), 10)
    assert [await cache.get(key) is None for key in "abcd"] == [False, True, False, False]
    await cache.put("a", b"", 5)
    assert (cache.bytes, len(cache)) == (21, 3)
    await cache.put("large", bytes(30), 10)
    assert await cache.get("large") is None and len(cache) == 3
    now[0] = 5.0
    assert await cache.get("a") is None and await cache.get("c") == bytes(9)
    now[0] = 10.0
    assert await cache.get("c") is None
    await cache.close()
    assert cache.bytes == 0


async def test_memory_of_no_bytes_keeps_nothing() -> None:
    cache = MemoryCache(0)
    await cache.put("a", b"x", 10)
    assert await cache.get("a") is None


def test_a_breaker_opens_tries_once_and_waits_longer_each_time() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES - 1):
        breaker.failed()
    assert breaker.passes()
    breaker.succeeded()
    for _ in range(FAILURES):
        assert breaker.passes()
        breaker.failed()
    assert not breaker.passes()
    pause_s = PAUSE_S
    for _ in range(8):
        now[0] += pause_s - 0.01
        assert not breaker.passes()
        now[0] += 0.02
        assert (breaker.passes(), breaker.passes()) == (True, False), "one goes ahead"
        breaker.failed()
        pause_s = min(MOST_S, 2 * pause_s)
    now[0] += pause_s
    assert breaker.passes()
    breaker.succeeded()
    assert (breaker.state, breaker.passes(), breaker.passes()) == ("closed", True, True)


def test_a_probe_that_never_comes_back_keeps_nobody_out_for_ever() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES):
        breaker.failed()
    now[0] += PAUSE_S
    assert (breaker.passes(), breaker.passes()) == (True, False)
    now[0] += PROBE_S
    assert breaker.passes()
    breaker.cancelled()
    assert breaker.passes()


def working(
    quality: float = 1.0, wait_s: float = 0.05
) -> tuple[list[float], Callable[[], Awaitable[CacheEntry]]]:
    runs: list[float] = []

    async def work() -> CacheEntry:
        runs.append(time.monotonic())
        number = len(runs)
        await asyncio.sleep(wait_s)
        return CacheEntry(quality, {"n": number})

    return runs, work


def at_least(quality: float) -> Callable[[CacheEntry], bool]:
    return lambda entry: entry.quality >= quality


async def test_what_many_ask_at_once_runs_once() -> None:
    once, (runs, work) = SingleFlight(MemoryCache(2**20), "t", 60, 2**20), working()
    found = await asyncio.gather(*(once.of("k", at_least(0), None, work) for _ in range(10)))
    assert [how for _, how in found] == ["miss"] + 9 * ["coalesced"]
    assert len(runs) == 1
    assert (await once.of("k", at_least(1), None, work))[1] == "hit"
    await once.of("other", at_least(0), None, work)
    assert len(runs) == 2


async def test_what_is_not_good_enough_is_computed_again_and_replaced() -> None:
    cache = MemoryCache(2**20)
    once, (poor_runs, poor), (runs, work) = SingleFlight(cache, "t", 60, 2**20), working(0.8), working(1.0)
    coalesced = asyncio.gather(once.of("k", at_least(0), None, poor), once.of("k", at_least(0.9), None, work))
    (_, first), (better, second) = await coalesced
    assert (first, second, better.quality) == ("miss", "miss", 1.0)
    assert (await once.of("k", at_least(0.7), None, poor))[1] == "hit"
    entry, how = await once.of("k", at_least(0.9), None, work)
    assert (how, entry.quality) == ("hit", 1.0)
    assert (await once.of("k", at_least(0.7), None, poor))[0].quality == 1.0
    assert len(poor_runs) == len(runs) == 1


async def test_what_was_poor_is_kept_for_a_moment_only() -> None:
    now = [0.0]
    once, (_, work) = SingleFlight(MemoryCache(2**20, lambda: now[0]), "t", 60, 2**20), working(0.8, 0)
    await once.of("k", at_least(0), None, work)
    now[0] = DEGRADED_TTL_S - 0.1
    assert (await once.of("k", at_least(0), None, work))[1] == "hit"
    now[0] = DEGRADED_TTL_S
    assert (await once.of("k", at_least(0), None, work))[1] == "miss"


async def test_when_who_leads_fails_or_leaves_one_of_the_others_takes_over() -> None:
    once, (runs, work) = SingleFlight(MemoryCache(2**20), "t", 60, 2**20), working()

    async def failing() -> CacheEntry:
        await asyncio.sleep(0.05)
        raise ValueError("broken")

    async def endless() -> CacheEntry:
        await asyncio.sleep(60)
        raise AssertionError

    for lead in (failing, endless):
        leads = asyncio.create_task(once.of(lead.__name__, at_least(0), None, lead))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(once.of(lead.__name__, at_least(0), None, work)) for _ in range(5)]
        await asyncio.sleep(0.01)
        if lead is endless:
            leads.cancel()
        found = await asyncio.gather(*rest)
        assert sorted(how for _, how in found) == 4 * ["coalesced"] + ["miss"]
        assert isinstance((await asyncio.gather(leads, return_exceptions=True))[0], BaseException)
    assert len(runs) == 2


async def test_who_has_less_time_than_who_leads_does_it_too_when_half_of_it_is_over() -> None:
    once, (runs, work) = SingleFlight(MemoryCache(2**20), "t", 60, 2**20), working(wait_s=1.0)
    leads = asyncio.create_task(once.of("k", at_least(0), None, work))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    _, quick = working(wait_s=0)
    assert (await once.of("k", at_least(0), began + 0.4, quick))[1] == "miss"
    assert 0.15 < time.monotonic() - began < 0.35
    assert (await leads)[1] == "miss" and len(runs) == 1


async def test_what_is_large_or_lacks_something_does_not_stay() -> None:
    now = [0.0]
    once = SingleFlight(MemoryCache(2**20, lambda: now[0]), "t", 60, 100)
    await once.keep("large", CacheEntry(1.0, {}, (bytes(60), bytes(41))))
    assert await once.find("large") is None
    await once.keep("short_lived", CacheEntry(1.0, {}, (b"x",), short_lived=True))
    assert await once.find("short_lived") == CacheEntry(1.0, {}, (b"x",))
    now[0] = DEGRADED_TTL_S
    assert await once.find("short_lived") is None


async def test_a_follower_that_leaves_takes_nobody_with_it() -> None:
    once, (runs, work) = SingleFlight(MemoryCache(2**20), "t", 60, 2**20), working()
    leads = asyncio.create_task(once.of("k", at_least(0), None, work))
    await asyncio.sleep(0.01)
    follows = asyncio.create_task(once.of("k", at_least(0), None, work))
    await asyncio.sleep(0.01)
    follows.cancel()
    assert (await leads)[1] == "miss" and len(runs) == 1
