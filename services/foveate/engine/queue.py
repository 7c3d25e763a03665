"""The waiting requests: bounded in items and in bytes, in order of arrival, O(1) to leave."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from foveate.core.errors import Overloaded
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Request


@dataclass(slots=True, eq=False)
class Entry:
    """One admitted request and all of its state. It is over once its future is done."""

    request: Request
    plan: Plan
    future: asyncio.Future[Outcome]
    admitted_at: float
    expiry: asyncio.TimerHandle | None = field(default=None)

    @property
    def alive(self) -> bool:
        """Somebody still waits for the answer."""
        return not self.future.done()


class WaitingQueue:
    """Entries in order of arrival. A full queue refuses; it never grows past its bounds."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items, self.max_bytes = max_items, max_bytes
        self.bytes = 0
        self._entries: dict[Entry, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def check_room(self, size_bytes: int, retry_after_s: float) -> None:
        """Raises Overloaded when one more request of this size would not fit."""
        if len(self) >= self.max_items:
            raise Overloaded(f"{self.max_items} requests are waiting already", retry_after_s)
        if self._entries and self.bytes + size_bytes > self.max_bytes:
            raise Overloaded(f"waiting requests hold {self.bytes} bytes already", retry_after_s)

    def push(self, entry: Entry) -> None:
        self._entries[entry] = None
        self.bytes += entry.request.size_bytes

    def remove(self, entry: Entry) -> None:
        if entry in self._entries:
            del self._entries[entry]
            self.bytes -= entry.request.size_bytes
