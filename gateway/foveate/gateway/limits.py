"""Limits on a request before the engine has it: admission, body bytes, spool bytes, time, disconnects."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BodyTooLarge, BodyTooSlow, ClientGone, DeadlineExceeded, Overloaded


class Permit:
    """One request inside; it owns the body bytes it has sent."""

    def __init__(self, door: "AdmissionLimiter") -> None:
        self._door, self.bytes = door, 0

    def check(self, total: int) -> None:
        """The body will be this long. Raises BodyTooLarge."""
        if total > self._door.max_body:
            raise BodyTooLarge(f"the body is over {self._door.max_body} bytes, the most this server reads")

    def hold(self, total: int) -> None:
        """The body is at least this long by now. Raises BodyTooLarge, Overloaded."""
        self.check(total)
        door = self._door
        more = max(0, total - self.bytes)
        if door.bytes + more > door.max_bytes:
            raise Overloaded("the requests inside hold as many bytes as the server allows")
        door.bytes += more
        self.bytes += more


class AdmissionLimiter:
    """Counts requests and body bytes inside. Only ever used on the event loop."""

    def __init__(self, max_items: int, max_bytes: int, max_body: int) -> None:
        self.max_items, self.max_bytes, self.max_body = max_items, max_bytes, max_body
        self.items = self.bytes = 0

    @contextmanager
    def enter(self) -> Iterator[Permit]:
        """Raises Overloaded when the house is full."""
        if self.items >= self.max_items:
            raise Overloaded(f"{self.items} requests are being served already")
        self.items += 1
        visit = Permit(self)
        try:
            yield visit
        finally:
            self.items -= 1
            self.bytes -= visit.bytes


class SpoolBudget:
    """Counts the bytes of bodies on disk. Only ever used on the event loop."""

    def __init__(self, max_bytes: int, max_body: int) -> None:
        self.max_bytes, self.max_body = max_bytes, max_body
        self.bytes = 0

    def check(self, total: int) -> None:
        """A body will be this long. Raises BodyTooLarge."""
        if total > self.max_body:
            raise BodyTooLarge(f"the clip is over {self.max_body} bytes, the most this server reads")

    def hold(self, more: int) -> None:
        """Raises Overloaded."""
        if self.bytes + more > self.max_bytes:
            raise Overloaded("the clips inside take as much disk as the server allows")
        self.bytes += more


@asynccontextmanager
async def deadline_timeout(deadline: float | None, timeout_s: float | None = None) -> AsyncIterator[None]:
    """Bound what comes before admission; after it the engine does.

    Raises DeadlineExceeded at the deadline, BodyTooSlow once `timeout_s` is over before it.
    """
    left = None if deadline is None else deadline - monotonic()
    impatient = timeout_s is not None and (left is None or timeout_s < left)
    try:
        async with asyncio.timeout(timeout_s if impatient else left):
            yield
    except TimeoutError:
        if impatient:
            raise BodyTooSlow(f"the body did not arrive within {timeout_s:g} s") from None
        raise DeadlineExceeded("the deadline passed before the picture was read") from None


@contextmanager
def cancel_on_disconnect(http: HttpRequest) -> Iterator[None]:
    """Cancel what runs inside as soon as the client closes its connection. Raises ClientGone."""
    current = asyncio.current_task()
    if current is None:
        raise RuntimeError("there is no task to cancel outside of one")
    watcher = asyncio.ensure_future(_disconnected(http))
    inside = True

    def leave(done: asyncio.Future[None]) -> None:
        # Once outside, the answer is being sent: cancelling now would hit whatever comes next.
        if inside and not done.cancelled():
            current.cancel()

    watcher.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        if not watcher.done() or watcher.cancelled():
            raise
        current.uncancel()
        raise ClientGone("the client left before its answer was ready") from None
    finally:
        inside = False
        watcher.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
