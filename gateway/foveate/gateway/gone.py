"""Stop working for a client that has left."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request as HttpRequest

from foveate.core.errors import ClientGone


@contextmanager
def unless_gone(http: HttpRequest) -> Iterator[None]:
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
