"""What was seen of pictures is kept for later clicks, within bounds, and looked at once by all who ask."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate.core.clicks import Features
from foveate.core.outcome import Reason
from foveate.core.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """One window of a picture, as its model has understood it, and how well."""

    features: Features
    classes: NDArray[np.uint8]
    """(h, w): the best class of each place; 0 the background, k the model's label k - 1."""
    plan: Plan
    quality: float
    """Of the plan, as measured; 0 where nobody did."""
    reason: Reason
    tokens: int
    exit_layer: int

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.classes.nbytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A picture, as far as it has been seen."""

    size: tuple[int, int]
    """Width and height, upright."""
    windows: Mapping[int, Seen]
    """By their numbers among the picture's windows."""

    @property
    def nbytes(self) -> int:
        return sum(seen.nbytes for seen in self.windows.values())


class FeatureStore:
    """Pictures by key, in this process's memory. The one that was asked for least lately goes first."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of features; 0 keeps nothing."""
        self.max_bytes, self.bytes = max_bytes, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def get(self, key: str) -> Kept | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, kept: Kept) -> None:
        """In place of what the key held. What is larger than the whole store is not kept."""
        old = self._kept.pop(key, None)
        self.bytes -= old.nbytes if old else 0
        if kept.nbytes > self.max_bytes:
            return
        self._kept[key] = kept
        self.bytes += kept.nbytes
        while self.bytes > self.max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.bytes -= gone.nbytes


class Flights(Generic[T]):
    """Work in flight, by key. For the event loop's thread alone."""

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Future[T]] = {}

    async def join(self, key: str) -> T | None:
        """What the work that is in flight under this key gives; None where there is none, or it comes to
        nothing: then everybody who waited goes on alone."""
        flight = self._flights.get(key)
        if flight is None:
            return None
        await asyncio.wait([flight])
        return None if flight.cancelled() else flight.result()

    async def lead(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work; who joins meanwhile gets what it gives, unless somebody leads already."""
        if key in self._flights:
            return await work()
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            found = await work()
            flight.set_result(found)
            return found
        finally:
            del self._flights[key]
            flight.cancel()  # where it has no result
