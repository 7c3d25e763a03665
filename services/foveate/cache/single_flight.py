"""Whoever asks for what is there gets it; what is not there is computed once, whoever asks meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Literal

from foveate.cache import Cache
from foveate.cache.entry import CacheEntry, decode_entry, encode_entry

CacheResult = Literal["hit", "coalesced", "miss"]
Good = Callable[[CacheEntry], bool]
"""Whether an entry is good enough for who asks."""
Work = Callable[[], Awaitable[CacheEntry]]

DEGRADED_TTL_S = 5.0
"""What was computed under load at less than the best is not what is answered once the load is gone."""
CLAIM_S = 10.0
"""Another process that has not answered by then is taken to be gone."""
PATIENCE = 0.5
"""Of the time left, what somebody waits for another one's work before doing it too."""


class SingleFlight:
    """Entries of one kind, in a cache."""

    def __init__(self, cache: Cache, kind: str, ttl_s: float, largest: int) -> None:
        """largest: bytes of an entry that is kept."""
        self.cache, self.kind, self.ttl_s, self.largest = cache, kind, ttl_s, largest
        self._flights: dict[str, asyncio.Future[CacheEntry]] = {}

    async def find(self, key: str) -> CacheEntry | None:
        """What is kept under the key; garbage is nothing."""
        data = await self.cache.get(f"{self.kind}:{key}")
        return None if data is None else decode_entry(data)

    async def keep(self, key: str, entry: CacheEntry) -> None:
        if sum(map(len, entry.parts)) <= self.largest:
            lasts = entry.quality >= 1 and not entry.short_lived
            ttl_s = self.ttl_s if lasts else min(self.ttl_s, DEGRADED_TTL_S)
            await self.cache.put(f"{self.kind}:{key}", encode_entry(entry), ttl_s)

    async def of(
        self, key: str, good: Good, deadline: float | None, work: Work
    ) -> tuple[CacheEntry, CacheResult]:
        """An entry that is good enough, and how it came about. Raises what `work` raises.

        deadline: of who asks, a time of the monotonic clock. It is not waited out: who is not answered by
        somebody else's work in time does it too.
        """
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait([flight], timeout=_patience_s(deadline))
            if not flight.done():
                return await work(), "miss"
            if not flight.cancelled() and good(entry := flight.result()):
                return entry, "coalesced"
            # It failed, left, or was content with less: another one may have taken over.
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            entry, how = await self._lead(key, good, deadline, work)
            flight.set_result(entry)
            return entry, how
        finally:
            del self._flights[key]
            flight.cancel()  # where it has no result

    async def _lead(
        self, key: str, good: Good, deadline: float | None, work: Work
    ) -> tuple[CacheEntry, CacheResult]:
        """Look, and do the work unless another process does."""
        name = f"{self.kind}:{key}"
        taken = await self.cache.try_claim(name, CLAIM_S)
        if isinstance(taken, bytes):
            found = decode_entry(taken)
            if found is not None and good(found):
                return found, "hit"
        elif not taken:
            patience_s = _patience_s(deadline)
            await self.cache.wait_released(name, CLAIM_S if patience_s is None else min(CLAIM_S, patience_s))
            found = await self.find(key)
            if found is not None and good(found):
                return found, "coalesced"
        try:
            entry = await work()
            await self.keep(key, entry)
        finally:
            if taken is True:
                await self.cache.release_claim(name)
        return entry, "miss"


def _patience_s(deadline: float | None) -> float | None:
    return None if deadline is None else PATIENCE * max(0.0, deadline - monotonic())
