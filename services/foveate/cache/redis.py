"""A cache that several processes share through Redis.

A Redis that is slow, unreachable, full or wrong counts as a miss and never raises an error.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Literal, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from foveate.cache.breaker import CircuitBreaker

log = logging.getLogger(__name__)
T = TypeVar("T")
CacheFailure = Literal["error", "timeout", "open"]
"""Redis answered with an error; it did not answer in time; it was not asked because the breaker was open."""

PREFIX = "foveate:"
"""Prefix of the names of all values in Redis."""
CLAIM_PREFIX = f"{PREFIX}claim:"
"""Prefix of the names of claims."""
RELEASE_CHANNEL = f"{PREFIX}released"
"""Pub/sub channel of the keys whose claim ends."""
MAX_CONNECTIONS = 32
MAX_BACKGROUND_TASKS = 256
"""Writes that may wait for Redis at once. Further ones are dropped."""
RESUBSCRIBE_DELAY_S = 1.0
"""Seconds until a lost subscription is tried again."""
_CLAIM_SCRIPT = """
local value = redis.call('get', KEYS[1])
if value then return value end
return redis.call('set', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""
_RELEASE_SCRIPT = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
redis.call('publish', ARGV[2], ARGV[3])
"""
"""Deletes the claim only if the caller still has it: an expired claim may belong to another process."""


class RedisCache:
    """Implements `Cache` for one process and its event loop."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        max_value_bytes: int,
        on_failure: Callable[[CacheFailure], None],
    ) -> None:
        """url: such as redis://127.0.0.1:6379/0. timeout_s: bound of each wait of a request for Redis.
        max_value_bytes: larger values are not stored. on_failure: called for each failed command, and for
        each command that the open breaker skipped.

        Raises ValueError if the URL is not one of Redis.
        """
        self.timeout_s, self.max_value_bytes, self.on_failure = timeout_s, max_value_bytes, on_failure
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self.client = Redis(connection_pool=pool)
        self.breaker = CircuitBreaker()
        self._owner = secrets.token_hex(8)
        self._background: set[asyncio.Task[Any]] = set()
        self._puts: dict[str, asyncio.Task[Any]] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._listener: asyncio.Task[None] | None = None

    async def get(self, key: str) -> bytes | None:
        """The value of the key, or None, also if Redis fails."""
        value = await self._command(lambda: self.client.get(PREFIX + key), None)
        return value if isinstance(value, bytes) else None

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store the value in the background: this method returns before Redis has it."""
        if len(value) > self.max_value_bytes:
            return
        ttl_ms = max(1, round(1e3 * ttl_s))
        task = self._run_in_background(
            self._command(lambda: self.client.set(PREFIX + key, value, px=ttl_ms), None)
        )
        if task is not None:
            self._puts[key] = task
            task.add_done_callback(lambda done: self._puts.get(key) is done and self._puts.pop(key))

    async def try_claim(self, key: str, for_s: float) -> bytes | bool:
        """Read or claim the key in one command. True if Redis fails: computing a value twice is better than
        not computing it."""
        keys, ttl_ms = (PREFIX + key, CLAIM_PREFIX + key), max(1, round(1e3 * for_s))
        value = await self._command(
            lambda: self.client.eval(_CLAIM_SCRIPT, 2, *keys, self._owner, str(ttl_ms)), True
        )
        return value if isinstance(value, bytes) else bool(value)

    async def release_claim(self, key: str) -> None:
        """End the claim in the background, after a `put` of the key that is still in progress."""

        async def release() -> None:
            if key in self._puts:
                await asyncio.wait([self._puts[key]])
            name = CLAIM_PREFIX + key
            await self._command(
                lambda: self.client.eval(_RELEASE_SCRIPT, 1, name, self._owner, RELEASE_CHANNEL, key), None
            )

        self._run_in_background(release())

    async def wait_released(self, key: str, timeout_s: float) -> None:
        """Return when the claim of the key is released, and after this many seconds at the latest."""
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="redis-released")
        until, loop = monotonic() + timeout_s, asyncio.get_running_loop()
        while (left := until - monotonic()) > 0:
            waiter = loop.create_future()
            self._waiters.setdefault(key, set()).add(waiter)
            try:
                # Read the claim after the waiter is registered, and again whenever a message may be lost.
                if not await self._command(lambda: self.client.exists(CLAIM_PREFIX + key), 0):
                    return
                await asyncio.wait([waiter], timeout=left)
            finally:
                self._waiters[key].discard(waiter)
                if not self._waiters[key]:
                    del self._waiters[key]

    async def close(self) -> None:
        """Cancel background writes and close all connections."""
        tasks = [*self._background, *([self._listener] if self._listener else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RedisError, OSError):
            await self.client.aclose()
            await self.client.connection_pool.disconnect()

    async def _command(self, command: Callable[[], Awaitable[T]], default: T) -> T:
        """The answer of Redis; `default` if Redis fails, answers too late, or the breaker is open."""
        if not self.breaker.allow():
            self.on_failure("open")
            return default
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await command()
        except TimeoutError:
            self._record_failure("timeout")
            return default
        except Exception as error:  # a server that is not Redis makes the client raise anything
            self._record_failure("timeout" if isinstance(error.__cause__, TimeoutError) else "error", error)
            return default
        except asyncio.CancelledError:
            self.breaker.record_cancellation()
            raise
        self.breaker.record_success()
        return answer

    def _record_failure(self, failure: CacheFailure, error: Exception | None = None) -> None:
        if self.breaker.state == "closed":
            log.warning("redis: %s", error or f"no answer within {self.timeout_s:g} s")
        self.breaker.record_failure()
        self.on_failure(failure)

    def _run_in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
        """Start a task that no request waits for. None, and the work is dropped, if there are too many."""
        if len(self._background) >= MAX_BACKGROUND_TASKS:
            work.close()
            return None
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _listen(self) -> None:
        """Wake the waiters of each released key, and all waiters when the connection is lost."""
        while True:
            try:
                async with self.client.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(RELEASE_CHANNEL)
                    self._wake_all()  # messages before the subscription did not arrive here
                    while True:
                        message = await subscription.get_message(timeout=RESUBSCRIBE_DELAY_S)
                        if message is not None and isinstance(message["data"], bytes):
                            self._wake(message["data"].decode("ascii", "replace"))
            except Exception:
                log.debug("redis: the subscription is lost", exc_info=True)
                self._wake_all()
                await asyncio.sleep(RESUBSCRIBE_DELAY_S)

    def _wake_all(self) -> None:
        for key in list(self._waiters):
            self._wake(key)

    def _wake(self, key: str) -> None:
        for waiter in self._waiters.get(key, ()):
            if not waiter.done():
                waiter.set_result(None)
