"""A cache that processes share. Redis slow, gone, full or wrong is a miss, counted, and never an error."""

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

from foveate.cache.breaker import Breaker

log = logging.getLogger(__name__)
T = TypeVar("T")
Trouble = Literal["error", "timeout", "open"]

PREFIX = "foveate:"
CLAIMS, RELEASED = f"{PREFIX}claim:", f"{PREFIX}released"
"""Before the name of a key that somebody works on; the channel on which its end is told."""
CONNECTIONS = 32
PENDING = 256
"""Values on their way to Redis at most; more are not kept."""
AGAIN_S = 1.0
"""Until a lost subscription is tried again."""
_TAKE = """
local found = redis.call('get', KEYS[1])
if found then return found end
return redis.call('set', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""
_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
redis.call('publish', ARGV[2], ARGV[3])
"""
"""A claim that ran out may be somebody else's by now."""


class RedisCache:
    """Of one process, for its event loop alone."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        max_value_bytes: int,
        failed: Callable[[Trouble], None],
    ) -> None:
        """url: as in redis://127.0.0.1:6379/0. timeout_s: the most that a request ever waits for it. failed:
        told of whatever goes wrong, and of what was not tried while the breaker was open."""
        self.timeout_s, self.max_value_bytes, self.failed = timeout_s, max_value_bytes, failed
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self.client = Redis(connection_pool=pool)
        self.breaker = Breaker()
        self._owner = secrets.token_hex(8)
        self._background: set[asyncio.Task[Any]] = set()
        self._putting: dict[str, asyncio.Task[Any]] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._listener: asyncio.Task[None] | None = None

    async def get(self, key: str) -> bytes | None:
        found = await self._ask(lambda: self.client.get(PREFIX + key), None)
        return found if isinstance(found, bytes) else None

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Nobody waits for it."""
        if len(value) > self.max_value_bytes:
            return
        kept_ms = max(1, round(1e3 * ttl_s))
        task = self._later(self._ask(lambda: self.client.set(PREFIX + key, value, px=kept_ms), None))
        if task is not None:
            self._putting[key] = task
            task.add_done_callback(lambda done: self._putting.get(key) is done and self._putting.pop(key))

    async def try_claim(self, key: str, for_s: float) -> bytes | bool:
        """One question, one answer. Where Redis cannot tell it is nobody's: twice is better than never."""
        keys, kept_ms = (PREFIX + key, CLAIMS + key), max(1, round(1e3 * for_s))
        found = await self._ask(lambda: self.client.eval(_TAKE, 2, *keys, self._owner, str(kept_ms)), True)
        return found if isinstance(found, bytes) else bool(found)

    async def release_claim(self, key: str) -> None:
        """Behind what is being put there: nobody is to look before that has arrived."""

        async def after() -> None:
            if key in self._putting:
                await asyncio.wait([self._putting[key]])
            name = CLAIMS + key
            await self._ask(lambda: self.client.eval(_RELEASE, 1, name, self._owner, RELEASED, key), None)

        self._later(after())

    async def wait_released(self, key: str, timeout_s: float) -> None:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="redis-released")
        until, loop = monotonic() + timeout_s, asyncio.get_running_loop()
        while (left := until - monotonic()) > 0:
            waiter = loop.create_future()
            self._waiters.setdefault(key, set()).add(waiter)
            try:
                # Looked at once somebody listens, and again whenever it may have passed by unheard.
                if not await self._ask(lambda: self.client.exists(CLAIMS + key), 0):
                    return
                await asyncio.wait([waiter], timeout=left)
            finally:
                self._waiters[key].discard(waiter)
                if not self._waiters[key]:
                    del self._waiters[key]

    async def close(self) -> None:
        tasks = [*self._background, *([self._listener] if self._listener else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RedisError, OSError):
            await self.client.aclose()
            await self.client.connection_pool.disconnect()

    async def _ask(self, command: Callable[[], Awaitable[T]], otherwise: T) -> T:
        """What Redis answers; `otherwise` where it does not in time, or with an error."""
        if not self.breaker.passes():
            self.failed("open")
            return otherwise
        try:
            async with asyncio.timeout(self.timeout_s):
                found = await command()
        except TimeoutError:
            self._note("timeout")
            return otherwise
        except Exception as error:  # what answers may be no Redis, and then the client raises anything
            self._note("timeout" if isinstance(error.__cause__, TimeoutError) else "error", error)
            return otherwise
        except asyncio.CancelledError:
            self.breaker.cancelled()
            raise
        self.breaker.succeeded()
        return found

    def _note(self, trouble: Trouble, error: Exception | None = None) -> None:
        if self.breaker.state == "closed":
            log.warning("redis: %s", error or f"no answer within {self.timeout_s:g} s")
        self.breaker.failed()
        self.failed(trouble)

    def _later(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
        """Done behind the request's back; None where too much is being done already."""
        if len(self._background) >= PENDING:
            work.close()
            return None
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _listen(self) -> None:
        """Wake who waits for a key that is told of; and all of them when the connection is lost."""
        while True:
            try:
                async with self.client.pubsub(ignore_subscribe_messages=True) as told:
                    await told.subscribe(RELEASED)
                    self._wake_all()  # what was told before this was told to nobody here
                    while True:
                        message = await told.get_message(timeout=AGAIN_S)
                        if message is not None and isinstance(message["data"], bytes):
                            self._wake(message["data"].decode("ascii", "replace"))
            except Exception:
                log.debug("redis: not listening", exc_info=True)
                self._wake_all()
                await asyncio.sleep(AGAIN_S)

    def _wake_all(self) -> None:
        for key in list(self._waiters):
            self._wake(key)

    def _wake(self, key: str) -> None:
        for waiter in self._waiters.get(key, ()):
            if not waiter.done():
                waiter.set_result(None)
