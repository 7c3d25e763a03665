"""The cache of one process: bounded bytes, least recently used first out, and expiry."""

import pytest

from foveate.cache.memory import MemoryCache

pytestmark = pytest.mark.anyio


async def test_the_least_recently_used_entries_are_evicted_and_old_ones_expire() -> None:
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


async def test_a_cache_of_zero_bytes_stores_nothing() -> None:
    cache = MemoryCache(0)
    await cache.put("a", b"x", 10)
    assert await cache.get("a") is None


async def test_a_claim_gives_the_value_or_succeeds() -> None:
    cache = MemoryCache(100)
    assert await cache.try_claim("a", 10) is True
    await cache.put("a", b"x", 10)
    await cache.release_claim("a")
    await cache.wait_released("a", 10)
    assert await cache.try_claim("a", 10) == b"x"
