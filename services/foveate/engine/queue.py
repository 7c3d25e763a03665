"""The waiting requests: bounded in items and bytes, ordered by virtual deadline."""

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Protocol, TypeVar, overload

from foveate.core.errors import FoveateError, Overloaded
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Request

_VIRTUAL_DEADLINE = attrgetter("virtual_deadline")


@dataclass(slots=True, eq=False)
class QueueEntry:
    """One admitted request and all of its state. The request is over once its future is done."""

    request: Request
    virtual_deadline: float
    """The time that orders the queue; clock seconds."""
    min_rung: int
    """Index of the cheapest rung that meets the request's minimum quality."""
    future: asyncio.Future[Outcome]
    admitted_at: float
    """Clock seconds."""
    expiry: asyncio.TimerHandle | None = field(default=None)
    """Ends the request at its deadline."""
    # Copied from the request: a policy reads these of every queued request at every decision.
    deadline: float = field(init=False)
    """Clock seconds; infinite for a request without a deadline."""
    pinned: Plan | None = field(init=False)
    tenant: str = field(init=False)

    def __post_init__(self) -> None:
        objective = self.request.objective
        self.deadline = math.inf if objective.deadline is None else objective.deadline
        self.pinned, self.tenant = self.request.plan, objective.tenant

    @property
    def size_bytes(self) -> int:
        """Memory that the decoded media hold."""
        return self.request.size_bytes

    @property
    def alive(self) -> bool:
        """True until the request has an outcome, has failed or was cancelled."""
        return not self.future.done()

    def fail(self, error: FoveateError) -> None:
        """End the request with this error, unless it is over already."""
        if not self.future.done():
            self.future.set_exception(error)


class Queueable(Protocol):
    """What a queue holds: `QueueEntry`, or another request with a place in the order."""

    @property
    def virtual_deadline(self) -> float:
        """The time that orders the queue; clock seconds."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory that its decoded media hold."""
        ...

    def fail(self, error: FoveateError) -> None:
        """End the request with this error, unless it is over already."""
        ...


EntryT = TypeVar("EntryT", bound=Queueable)


class WaitingQueue(Sequence[EntryT], Generic[EntryT]):
    """Entries by virtual deadline; entries with the same one in order of arrival."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        """max_bytes: of decoded media. A queue with one entry may exceed it."""
        self.max_items, self.max_bytes = max_items, max_bytes
        self.bytes = 0
        """Bytes of decoded media that the entries hold."""
        self._entries: list[EntryT] = []
        self._members: set[EntryT] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[EntryT]:
        return iter(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._members

    @overload
    def __getitem__(self, index: int) -> EntryT: ...
    @overload
    def __getitem__(self, index: slice) -> list[EntryT]: ...
    def __getitem__(self, index: int | slice) -> EntryT | list[EntryT]:
        return self._entries[index]

    def check_capacity(self, size_bytes: int, wait_s: Callable[[], float]) -> None:
        """Raises Overloaded if one more request of this size does not fit.

        wait_s: called only then; returns the seconds after which the client should retry.
        """
        if len(self) >= self.max_items:
            raise Overloaded(
                f"the queue is full: {self.max_items} requests are waiting; retry later", wait_s()
            )
        if self._entries and self.bytes + size_bytes > self.max_bytes:
            raise Overloaded(
                f"the queue is full: it holds {self.bytes} bytes of media; retry later", wait_s()
            )

    def push(self, entry: EntryT) -> None:
        """Insert an entry at its place in the order. Does not check the capacity."""
        insort(self._entries, entry, key=_VIRTUAL_DEADLINE)
        self._members.add(entry)
        self.bytes += entry.size_bytes

    def remove(self, entry: EntryT) -> None:
        """Remove an entry; does nothing if the entry is not in the queue."""
        if entry not in self._members:
            return
        self._members.remove(entry)
        at = bisect_left(self._entries, entry.virtual_deadline, key=_VIRTUAL_DEADLINE)
        del self._entries[self._entries.index(entry, at)]
        self.bytes -= entry.size_bytes

    def refuse(self, entry: EntryT, error: FoveateError) -> None:
        """End a request with this error, and remove its entry if it is in the queue."""
        entry.fail(error)
        self.remove(entry)
