"""Limits on a request before it reaches the engine: admission, body bytes, spool bytes, time, disconnects."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BodyTooLarge, BodyTooSlow, ClientGone, DeadlineExceeded, Overloaded


class Permit:
    """The permit of one admitted request. It counts the request's body bytes."""

    def __init__(self, limiter: "AdmissionLimiter") -> None:
        self._limiter, self.bytes = limiter, 0

    @property
    def max_body(self) -> int:
        """Maximum bytes of one body."""
        return self._limiter.max_body

    def check(self, total: int) -> None:
        """Raises BodyTooLarge for a body of this many bytes, if it is too long."""
        if total > self._limiter.max_body:
            raise BodyTooLarge(
                f"the body is over {self._limiter.max_body} bytes, the server's limit for images and JSON;"
                " send a clip under its own type, as in content-type: video/mp4, or in a multipart form"
            )

    def reserve(self, total: int) -> None:
        """Count a body that is this long so far. Raises BodyTooLarge, Overloaded."""
        self.check(total)
        self._add(max(0, total - self.bytes))

    def part(self) -> "Permit":
        """A permit for one more file of the same request: its bytes are counted beside those of the body."""
        return PartPermit(self)

    def _add(self, added: int) -> None:
        limiter = self._limiter
        if limiter.bytes + added > limiter.max_bytes:
            raise Overloaded(
                f"the bodies of all requests in flight are over {limiter.max_bytes} bytes; retry later"
            )
        limiter.bytes += added
        self.bytes += added

    def release(self) -> None:
        """The body is no longer in memory, although the request goes on."""
        self._limiter.bytes -= self.bytes
        self.bytes = 0


class PartPermit(Permit):
    """Counts one file of a request, which the permit of the whole request releases at its end."""

    def __init__(self, whole: Permit) -> None:
        super().__init__(whole._limiter)
        self._whole = whole

    def _add(self, added: int) -> None:
        self._whole._add(added)
        self.bytes += added


class AdmissionLimiter:
    """Counts requests in flight and their body bytes. For the event loop's thread only."""

    def __init__(self, max_items: int, max_bytes: int, max_body: int) -> None:
        """max_items: requests; max_bytes: bytes of all bodies together; max_body: bytes of one body."""
        self.max_items, self.max_bytes, self.max_body = max_items, max_bytes, max_body
        self.items = self.bytes = 0
        self._ended = asyncio.Event()

    async def wait_empty(self, timeout_s: float) -> None:
        """Return once no request is in flight, or after the time-out."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.items:
                    self._ended.clear()
                    await self._ended.wait()

    @contextmanager
    def admit(self) -> Iterator[Permit]:
        """Count one request until the end of the context. Raises Overloaded at the limit."""
        if self.items >= self.max_items:
            raise Overloaded(f"{self.items} requests are in flight, the server's limit; retry later")
        self.items += 1
        permit = Permit(self)
        try:
            yield permit
        finally:
            self.items -= 1
            self.bytes -= permit.bytes
            if not self.items:
                self._ended.set()


class SpoolBudget:
    """Counts the bytes of bodies on disk. For the event loop's thread only."""

    def __init__(self, max_bytes: int, max_body: int) -> None:
        """max_bytes: bytes of all bodies on disk together; max_body: bytes of one body."""
        self.max_bytes, self.max_body = max_bytes, max_body
        self.bytes = 0

    def check(self, total: int) -> None:
        """Raises BodyTooLarge for a body of this many bytes, if it is too long."""
        if total > self.max_body:
            raise BodyTooLarge(f"the clip is over {self.max_body} bytes, the server's limit")

    def reserve(self, added: int) -> None:
        """Count bytes that will be written. Raises Overloaded."""
        if self.bytes + added > self.max_bytes:
            raise Overloaded(f"the clips on disk are over {self.max_bytes} bytes together; retry later")
        self.bytes += added


class MemoryBudget:
    """Bytes that several tasks share: a task waits, in order of arrival, until its share is free.

    For the event loop's thread only. A task that needs more than all of it gets all of it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = self.free = max_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def share(self, needed: int) -> AsyncIterator[None]:
        """Hold so many bytes within the context. 0 never waits."""
        needed = min(needed, self.max_bytes)
        if needed:
            await self._take(needed)
        try:
            yield
        finally:
            self.free += needed
            self._grant()

    async def _take(self, needed: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((needed, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was granted in the meantime
                self.free += needed
            self._grant()
            raise

    def _grant(self) -> None:
        """Give the first waiting tasks their shares, as far as they fit."""
        while self._waiting:
            needed, turn = self._waiting[0]
            if not turn.cancelled():
                if needed > self.free:
                    return
                self.free -= needed
                turn.set_result(None)
            self._waiting.popleft()


@asynccontextmanager
async def deadline_timeout(deadline: float | None, timeout_s: float | None = None) -> AsyncIterator[None]:
    """Limit the time before admission. After admission, the engine enforces the deadline.

    deadline: in seconds of the monotonic clock. Raises DeadlineExceeded at the deadline, and BodyTooSlow
    after `timeout_s` seconds if the deadline is later.
    """
    left_s = None if deadline is None else deadline - monotonic()
    timeout_first = timeout_s is not None and (left_s is None or timeout_s < left_s)
    try:
        async with asyncio.timeout(timeout_s if timeout_first else left_s):
            yield
    except TimeoutError:
        if timeout_first:
            raise BodyTooSlow(f"the body did not arrive within {timeout_s:g} s, the server's limit") from None
        raise DeadlineExceeded("the deadline passed before the media were decoded") from None


@contextmanager
def cancel_on_disconnect(http: HttpRequest) -> Iterator[None]:
    """Cancel the code in the context as soon as the client closes its connection. Raises ClientGone."""
    current = asyncio.current_task()
    if current is None:
        raise RuntimeError("cancel_on_disconnect needs a running asyncio task")
    listener = asyncio.ensure_future(_disconnected(http))
    inside = True

    def cancel(done: asyncio.Future[None]) -> None:
        # After the context the answer is being sent: a cancellation would hit unrelated code.
        if inside and not done.cancelled():
            current.cancel()

    listener.add_done_callback(cancel)
    try:
        yield
    except asyncio.CancelledError:
        if not listener.done() or listener.cancelled():
            raise
        current.uncancel()
        raise ClientGone("the client closed the connection before its answer was ready") from None
    finally:
        inside = False
        listener.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
