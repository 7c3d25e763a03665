"""The shared cache on a real Redis: shared by two, and slow, full, restarted, gone or talking nonsense."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foveate.cache.breaker import FAILURES
from foveate.cache.entry import CacheEntry
from foveate.cache.once import SingleFlight
from foveate.cache.redis import PREFIX, RedisCache
from tests.support.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio
TIMEOUT_S = 0.25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as found:
        yield found


@asynccontextmanager
async def cache(url: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[tuple[RedisCache, Counter[str]]]:
    told: Counter[str] = Counter()
    found = RedisCache(url, timeout_s, 2**20, lambda trouble: told.update([trouble]))
    try:
        yield found, told
    finally:
        await found.close()


def anything(_: CacheEntry) -> bool:
    return True


async def kept(one: RedisCache, key: str) -> bytes | None:
    """What is there once what was put is there."""
    for _ in range(100):
        if (found := await one.get(key)) is not None:
            return found
        await asyncio.sleep(0.01)
    return None


async def test_what_one_puts_the_other_gets_until_its_time_is_over(server: RedisServer) -> None:
    async with cache(server.url) as (one, _), cache(server.url) as (two, told):
        await one.put("a", b"\x00value", 0.4)
        assert await kept(two, "a") == b"\x00value"
        assert await two.get("b") is None
        await asyncio.sleep(0.5)
        assert await two.get("a") is None
        await one.put("large", bytes(2**20 + 1), 9)
        await asyncio.sleep(0.1)
        assert await two.get("large") is None
        assert not told


async def test_two_processes_run_what_both_are_asked_once(server: RedisServer) -> None:
    runs = 0

    async def work() -> CacheEntry:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.2)
        return CacheEntry(1.0, {"n": runs})

    async with cache(server.url) as (one, _), cache(server.url) as (two, _):
        first, second = SingleFlight(one, "t", 60, 2**20), SingleFlight(two, "t", 60, 2**20)

        async def ask(of: SingleFlight, after_s: float) -> tuple[object, str]:
            await asyncio.sleep(after_s)
            entry, how = await of.of("same", anything, time.monotonic() + 20, work)
            return entry.fields["n"], how

        began = time.monotonic()
        found = await asyncio.gather(ask(first, 0), ask(first, 0.02), ask(second, 0.05), ask(second, 0.06))
        assert time.monotonic() - began < 2
        assert list(found) == [(1, "miss"), (1, "coalesced"), (1, "coalesced"), (1, "coalesced")]
        assert runs == 1
        assert await ask(second, 0) == (1, "hit")


async def test_whoever_dies_over_it_is_waited_for_no_longer_than_half_the_time_left(
    server: RedisServer,
) -> None:
    async def work() -> CacheEntry:
        return CacheEntry(1.0)

    async with cache(server.url) as (gone, _), cache(server.url) as (two, _):
        assert await gone.try_claim("t:left", 30) is True
        began = time.monotonic()
        _, how = await SingleFlight(two, "t", 60, 2**20).of("left", anything, began + 1.0, work)
        assert how == "miss"
        assert 0.4 < time.monotonic() - began < 0.9
        await gone.release_claim("t:left")


async def test_a_claim_is_released_by_its_owner_alone(server: RedisServer) -> None:
    async with cache(server.url) as (one, _), cache(server.url) as (two, _):
        assert await one.try_claim("mine", 30) is True
        assert await two.try_claim("mine", 30) is False
        await two.release_claim("mine")
        await asyncio.sleep(0.1)
        assert await two.try_claim("mine", 30) is False
        await one.release_claim("mine")
        await asyncio.sleep(0.1)
        assert await two.try_claim("mine", 30) is True


async def test_garbage_is_a_miss(server: RedisServer) -> None:
    async with cache(server.url) as (one, _):
        once = SingleFlight(one, "t", 60, 2**20)
        await once.keep("fine", CacheEntry(0.5, {"a": 1}, (b"x", b"")))
        whole = await kept(one, "t:fine")
        assert whole is not None
        assert await once.find("fine") == CacheEntry(0.5, {"a": 1}, (b"x", b""))
        for wrong in (
            b"",
            b"nonsense",
            whole[:-1],
            whole + b"x",
            whole.replace(b"x", b"y"),
            b"\x80\x04K\x01.",
        ):
            await one.client.set(f"{PREFIX}t:fine", wrong)
            assert await once.find("fine") is None
        await one.client.delete(f"{PREFIX}t:fine")
        await one.client.rpush(f"{PREFIX}t:fine", b"a list")
        assert await once.find("fine") is None


async def test_whoever_waits_is_woken_however_early_it_began_to_listen(server: RedisServer) -> None:
    """The first to wait in a process subscribes; what is released meanwhile must not pass it by."""
    for number in range(20):
        async with cache(server.url) as (one, _), cache(server.url) as (two, _):
            first, second, key = (
                SingleFlight(one, "t", 60, 2**20),
                SingleFlight(two, "t", 60, 2**20),
                f"early{number}",
            )

            async def short_lived() -> CacheEntry:
                await asyncio.sleep(0.004)
                return CacheEntry(1.0)

            async def never() -> CacheEntry:
                raise AssertionError("it was there")

            leads = asyncio.create_task(first.of(key, anything, None, short_lived))
            await asyncio.sleep(0.002)
            began = time.monotonic()
            how = (await second.of(key, anything, began + 4, never if leads.done() else short_lived))[1]
            assert time.monotonic() - began < 1, "half of the time left is two seconds"
            assert how in ("coalesced", "hit", "miss")
            await leads


async def test_what_is_released_is_there(server: RedisServer) -> None:
    async with cache(server.url) as (one, _), cache(server.url) as (two, _):
        first, second = SingleFlight(one, "t", 60, 2**20), SingleFlight(two, "t", 60, 2**20)

        async def large() -> CacheEntry:
            await asyncio.sleep(0.02)
            return CacheEntry(1.0, {}, (bytes(2**20 - 200),))

        for number in range(20):
            key = f"large{number}"
            leads = asyncio.create_task(first.of(key, anything, None, large))
            await asyncio.sleep(0.005)
            assert (await second.of(key, anything, time.monotonic() + 20, large))[1] == "coalesced"
            await leads


async def test_a_slow_one_costs_its_timeout_a_few_times_and_then_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path) as own:
        async with cache(own.url, 0.1) as (one, told):
            await one.put("a", b"x", 60)
            assert await kept(one, "a") == b"x"
            own.pause()
            for _ in range(FAILURES):
                began = time.monotonic()
                assert await one.get("a") is None
                assert time.monotonic() - began < 0.3
            began = time.monotonic()
            for _ in range(100):
                assert await one.get("a") is None
            assert time.monotonic() - began < 0.1
            assert told["timeout"] == FAILURES and told["open"] == 100
            own.go_on()
            await asyncio.sleep(0.7)
            assert await kept(one, "a") == b"x", "it is back by itself"
            assert one.breaker.state == "closed"


async def test_one_that_goes_and_comes_back_is_missed_and_found_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as own:
        async with cache(own.url) as (one, told):
            await one.put("a", b"x", 60)
            assert await kept(one, "a") == b"x"
            own.stop()
            for _ in range(20):
                assert await one.get("a") is None
                assert await one.try_claim("a", 1) is True, "twice is better than never"
            assert told["error"] and told["open"]
            own.start()
            await asyncio.sleep(0.7)
            for _ in range(50):
                await one.put("a", b"y", 60)
                if await kept(one, "a") == b"y":
                    break
            assert await kept(one, "a") == b"y"


async def test_a_full_one_keeps_nothing_more_and_harms_nobody(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as own:
        async with cache(own.url) as (one, told):
            for number in range(40):
                await one.put(f"k{number}", bytes(2**17), 60)
                await asyncio.sleep(0.01)
            assert told["error"]
            assert await one.get("unknown") is None


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\x01\x02\r\n",
        b"$5\r\nab\r\n",
        b"",
        b"%1\r\n*0\r\n+x\r\n",
        b",1.5\r\n",
        b"*1\r\n$1\r\na\r\n",
        b"_\r\n",
    ],
)
async def test_what_is_no_redis_is_a_miss(words: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096) and words:
            writer.write(words)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        async with cache(f"redis://127.0.0.1:{port}/0") as (one, told):
            began = time.monotonic()
            for _ in range(2 * FAILURES):
                assert await one.get("a") is None
                assert not isinstance(await one.try_claim("a", 1), bytes)
                await one.put("a", b"x", 1)
                await one.wait_released("a", 0.01)
            assert time.monotonic() - began < 20 * TIMEOUT_S
            assert one.breaker.state != "closed" or set(told) <= {"error"}
