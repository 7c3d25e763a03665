"""The Redis cache without a Redis: servers that are not Redis, and no server at all, count as misses."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from foveate.cache.breaker import FAILURE_THRESHOLD
from foveate.cache.redis import MAX_BACKGROUND_TASKS, RedisCache
from tests.e2e.serving import free_port

pytestmark = pytest.mark.anyio
TIMEOUT_S = 0.25


@asynccontextmanager
async def redis_cache(port: int) -> AsyncIterator[tuple[RedisCache, Counter[str]]]:
    """A cache, and how often each kind of failure was counted."""
    failures: Counter[str] = Counter()
    cache = RedisCache(
        f"redis://127.0.0.1:{port}/0", TIMEOUT_S, 2**20, lambda failure: failures.update([failure])
    )
    try:
        yield cache, failures
    finally:
        await cache.close()


@asynccontextmanager
async def server_that_answers(answer: bytes) -> AsyncIterator[int]:
    """The port of a server that answers each message with these bytes, and closes if there are none."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096) and answer:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "answer",
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
async def test_a_server_that_is_not_redis_is_a_miss(answer: bytes) -> None:
    async with server_that_answers(answer) as port, redis_cache(port) as (cache, failures):
        began = time.monotonic()
        for _ in range(2 * FAILURE_THRESHOLD):
            assert await cache.get("a") is None
            assert not isinstance(await cache.try_claim("a", 1), bytes)
            await cache.put("a", b"x", 1)
            await cache.wait_released("a", 0.01)
        assert time.monotonic() - began < 20 * TIMEOUT_S
        assert cache.breaker.state != "closed" or set(failures) <= {"error"}


async def test_without_a_server_claims_succeed_and_the_breaker_opens() -> None:
    async with redis_cache(free_port()) as (cache, failures):
        for _ in range(FAILURE_THRESHOLD + 2):
            assert await cache.get("a") is None
        assert await cache.try_claim("a", 1) is True
        assert failures == {"error": FAILURE_THRESHOLD, "open": 3}


async def test_writes_beyond_the_bound_of_the_background_are_dropped() -> None:
    async with server_that_answers(b"") as port, redis_cache(port) as (cache, _):
        for number in range(MAX_BACKGROUND_TASKS + 5):
            await cache.put(f"k{number}", b"x", 60)
        assert len(cache._background) == MAX_BACKGROUND_TASKS


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379"])
def test_a_url_that_is_not_one_of_redis_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        RedisCache(url, TIMEOUT_S, 2**20, print)
