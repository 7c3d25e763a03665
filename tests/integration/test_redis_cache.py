"""The shared cache on a real Redis: two processes share it, and it may be slow, full, restarted or gone."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foveate.cache.breaker import FAILURE_THRESHOLD
from foveate.cache.entry import CacheEntry
from foveate.cache.redis import PREFIX, RedisCache
from foveate.cache.single_flight import SingleFlight
from tests.support.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio
TIMEOUT_S = 0.25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@asynccontextmanager
async def redis_cache(
    url: str, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[tuple[RedisCache, Counter[str]]]:
    """A cache, and how often each kind of failure was counted."""
    failures: Counter[str] = Counter()
    cache = RedisCache(url, timeout_s, 2**20, lambda failure: failures.update([failure]))
    try:
        yield cache, failures
    finally:
        await cache.close()


def single_flight(cache: RedisCache) -> SingleFlight:
    return SingleFlight(cache, "t", 60, 2**20)


def accept_any(_: CacheEntry) -> bool:
    return True


async def stored(cache: RedisCache, key: str) -> bytes | None:
    """The value of the key after the writes in progress; None if there is none after a second."""
    for _ in range(100):
        if (value := await cache.get(key)) is not None:
            return value
        await asyncio.sleep(0.01)
    return None


async def test_a_value_is_visible_to_another_process_until_it_expires(server: RedisServer) -> None:
    async with redis_cache(server.url) as (one, _), redis_cache(server.url) as (two, failures):
        await one.put("a", b"\x00value", 0.4)
        assert await stored(two, "a") == b"\x00value"
        assert await two.get("b") is None
        await asyncio.sleep(0.5)
        assert await two.get("a") is None
        await one.put("large", bytes(2**20 + 1), 9)
        await asyncio.sleep(0.1)
        assert await two.get("large") is None
        assert not failures


async def test_two_processes_share_one_computation(server: RedisServer) -> None:
    runs = 0

    async def compute() -> CacheEntry:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.2)
        return CacheEntry(1.0, {"n": runs})

    async with redis_cache(server.url) as (one, _), redis_cache(server.url) as (two, _):
        first, second = single_flight(one), single_flight(two)

        async def ask(flights: SingleFlight, after_s: float) -> tuple[object, str]:
            await asyncio.sleep(after_s)
            entry, result = await flights.get_or_compute("same", accept_any, time.monotonic() + 20, compute)
            return entry.fields["n"], result

        began = time.monotonic()
        results = await asyncio.gather(ask(first, 0), ask(first, 0.02), ask(second, 0.05), ask(second, 0.06))
        assert time.monotonic() - began < 2
        assert list(results) == [(1, "miss"), (1, "coalesced"), (1, "coalesced"), (1, "coalesced")]
        assert runs == 1
        assert await ask(second, 0) == (1, "hit")


async def test_a_dead_process_delays_others_by_at_most_half_of_their_time(server: RedisServer) -> None:
    async def compute() -> CacheEntry:
        return CacheEntry(1.0)

    async with redis_cache(server.url) as (dead, _), redis_cache(server.url) as (two, _):
        assert await dead.try_claim("t:left", 30) is True
        began = time.monotonic()
        _, result = await single_flight(two).get_or_compute("left", accept_any, began + 1.0, compute)
        assert result == "miss"
        assert 0.4 < time.monotonic() - began < 0.9
        await dead.release_claim("t:left")


async def test_only_the_owner_of_a_claim_releases_it(server: RedisServer) -> None:
    async with redis_cache(server.url) as (one, _), redis_cache(server.url) as (two, _):
        assert await one.try_claim("mine", 30) is True
        assert await two.try_claim("mine", 30) is False
        await two.release_claim("mine")
        await asyncio.sleep(0.1)
        assert await two.try_claim("mine", 30) is False
        await one.release_claim("mine")
        await asyncio.sleep(0.1)
        assert await two.try_claim("mine", 30) is True


async def test_values_that_cannot_be_decoded_are_misses(server: RedisServer) -> None:
    async with redis_cache(server.url) as (one, _):
        flights = single_flight(one)
        await flights.put("fine", CacheEntry(0.5, {"a": 1}, (b"x", b"")))
        encoded = await stored(one, "t:fine")
        assert encoded is not None
        assert await flights.get("fine") == CacheEntry(0.5, {"a": 1}, (b"x", b""))
        for damaged in (
            b"",
            b"nonsense",
            encoded[:-1],
            encoded + b"x",
            encoded.replace(b"x", b"y"),
            b"\x80\x04K\x01.",
        ):
            await one.client.set(f"{PREFIX}t:fine", damaged)
            assert await flights.get("fine") is None
        await one.client.delete(f"{PREFIX}t:fine")
        await one.client.rpush(f"{PREFIX}t:fine", b"a list")
        assert await flights.get("fine") is None


async def test_a_waiter_is_woken_even_if_the_claim_ends_while_it_subscribes(server: RedisServer) -> None:
    """The first waiter of a process subscribes; a release in the meantime must not be missed."""
    for number in range(20):
        async with redis_cache(server.url) as (one, _), redis_cache(server.url) as (two, _):
            first, second, key = single_flight(one), single_flight(two), f"early{number}"

            async def quick() -> CacheEntry:
                await asyncio.sleep(0.004)
                return CacheEntry(1.0)

            async def never() -> CacheEntry:
                raise AssertionError("the entry is cached")

            leader = asyncio.create_task(first.get_or_compute(key, accept_any, None, quick))
            await asyncio.sleep(0.002)
            began = time.monotonic()
            compute = never if leader.done() else quick
            _, result = await second.get_or_compute(key, accept_any, began + 4, compute)
            assert time.monotonic() - began < 1, "half of the time left is two seconds"
            assert result in ("coalesced", "hit", "miss")
            await leader


async def test_the_value_is_visible_when_its_claim_is_released(server: RedisServer) -> None:
    async with redis_cache(server.url) as (one, _), redis_cache(server.url) as (two, _):
        first, second = single_flight(one), single_flight(two)

        async def large() -> CacheEntry:
            await asyncio.sleep(0.02)
            return CacheEntry(1.0, {}, (bytes(2**20 - 200),))

        for number in range(20):
            key = f"large{number}"
            leader = asyncio.create_task(first.get_or_compute(key, accept_any, None, large))
            await asyncio.sleep(0.005)
            deadline = time.monotonic() + 20
            assert (await second.get_or_compute(key, accept_any, deadline, large))[1] == "coalesced"
            await leader


async def test_a_slow_redis_costs_a_few_time_outs_and_then_no_time(tmp_path: Path) -> None:
    with redis_server(tmp_path) as slow:
        async with redis_cache(slow.url, 0.1) as (one, failures):
            await one.put("a", b"x", 60)
            assert await stored(one, "a") == b"x"
            slow.pause()
            for _ in range(FAILURE_THRESHOLD):
                began = time.monotonic()
                assert await one.get("a") is None
                assert time.monotonic() - began < 0.3
            began = time.monotonic()
            for _ in range(100):
                assert await one.get("a") is None
            assert time.monotonic() - began < 0.1
            assert failures["timeout"] == FAILURE_THRESHOLD and failures["open"] == 100
            slow.resume()
            await asyncio.sleep(0.7)
            assert await stored(one, "a") == b"x", "the cache works again without a restart"
            assert one.breaker.state == "closed"


async def test_a_restarted_redis_is_used_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as restarted:
        async with redis_cache(restarted.url) as (one, failures):
            await one.put("a", b"x", 60)
            assert await stored(one, "a") == b"x"
            restarted.stop()
            for _ in range(20):
                assert await one.get("a") is None
                assert await one.try_claim("a", 1) is True, "computing twice is better than not at all"
            assert failures["error"] and failures["open"]
            restarted.start()
            await asyncio.sleep(0.7)
            for _ in range(50):
                await one.put("a", b"y", 60)
                if await stored(one, "a") == b"y":
                    break
            assert await stored(one, "a") == b"y"


async def test_a_full_redis_rejects_writes_and_still_answers_reads(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as full:
        async with redis_cache(full.url) as (one, failures):
            for number in range(40):
                await one.put(f"k{number}", bytes(2**17), 60)
                await asyncio.sleep(0.01)
            assert failures["error"]
            assert await one.get("unknown") is None
