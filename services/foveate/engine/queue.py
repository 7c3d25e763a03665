"""The waiting requests: bounded in items and in bytes, in the order of their turns, quick to leave."""

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import overload

from foveate.core.errors import Overloaded
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Request

_VIRTUAL_DEADLINE = attrgetter("virtual_deadline")


@dataclass(slots=True, eq=False)
class QueueEntry:
    """One admitted request and all of its state. It is over once its future is done."""

    request: Request
    virtual_deadline: float
    """When its turn comes; clock seconds."""
    min_rung: int
    """Index of the cheapest rung it may get."""
    future: asyncio.Future[Outcome]
    admitted_at: float
    expiry: asyncio.TimerHandle | None = field(default=None)
    # A policy reads these of everybody who waits at every decision.
    deadline: float = field(init=False)
    pinned: Plan | None = field(init=False)
    tenant: str = field(init=False)

    def __post_init__(self) -> None:
        objective = self.request.objective
        self.deadline = math.inf if objective.deadline is None else objective.deadline
        self.pinned, self.tenant = self.request.plan, objective.tenant

    @property
    def alive(self) -> bool:
        """Somebody still waits for the answer."""
        return not self.future.done()


class WaitingQueue(Sequence[QueueEntry]):
    """Entries by their turns, those with the same in order of arrival. A full queue refuses."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items, self.max_bytes = max_items, max_bytes
        self.bytes = 0
        self._entries: list[QueueEntry] = []
        self._held: set[QueueEntry] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[QueueEntry]:
        return iter(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._held

    @overload
    def __getitem__(self, index: int) -> QueueEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[QueueEntry]: ...
    def __getitem__(self, index: int | slice) -> QueueEntry | list[QueueEntry]:
        return self._entries[index]

    def check_room(self, size_bytes: int, wait_s: Callable[[], float]) -> None:
        """Raises Overloaded when one more request of this size would not fit; `wait_s` says for how long."""
        if len(self) >= self.max_items:
            raise Overloaded(f"{self.max_items} requests are waiting already", wait_s())
        if self._entries and self.bytes + size_bytes > self.max_bytes:
            raise Overloaded(f"waiting requests hold {self.bytes} bytes already", wait_s())

    def push(self, entry: QueueEntry) -> None:
        insort(self._entries, entry, key=_VIRTUAL_DEADLINE)
        self._held.add(entry)
        self.bytes += entry.request.size_bytes

    def remove(self, entry: QueueEntry) -> None:
        """Take an entry out, if it is there."""
        if entry not in self._held:
            return
        self._held.remove(entry)
        at = bisect_left(self._entries, entry.virtual_deadline, key=_VIRTUAL_DEADLINE)
        del self._entries[self._entries.index(entry, at)]
        self.bytes -= entry.request.size_bytes
