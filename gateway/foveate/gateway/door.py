"""The permit at the door: how much may be inside at once, before any work is done for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from foveate.core.errors import BodyTooLarge, Overloaded


class Visit:
    """One request inside; it owns the body bytes it has sent."""

    def __init__(self, door: "Door") -> None:
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


class Door:
    """Counts requests and body bytes inside. Only ever used on the event loop."""

    def __init__(self, max_items: int, max_bytes: int, max_body: int) -> None:
        self.max_items, self.max_bytes, self.max_body = max_items, max_bytes, max_body
        self.items = self.bytes = 0

    @contextmanager
    def enter(self) -> Iterator[Visit]:
        """Raises Overloaded when the house is full."""
        if self.items >= self.max_items:
            raise Overloaded(f"{self.items} requests are being served already")
        self.items += 1
        visit = Visit(self)
        try:
            yield visit
        finally:
            self.items -= 1
            self.bytes -= visit.bytes
