"""Whoever asks for what is there gets it; what is not there is computed once, whoever asks meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Literal

from foveate.cache import Cache
from foveate.cache.entry import Entry, decoded, encoded

How = Literal["hit", "joined", "miss"]
Good = Callable[[Entry], bool]
"""Whether an entry is good enough for who asks."""
Work = Callable[[], Awaitable[Entry]]

DEGRADED_TTL_S = 5.0
"""What was computed under load at less than the best is not what is answered once the load is gone."""
CLAIM_S = 10.0
"""Another process that has not answered by then is taken to be gone."""
PATIENCE = 0.5
"""Of the time left, what somebody waits for another process before it sees to it itself."""


class Once:
    """Entries of one kind, in a cache."""

    def __init__(self, cache: Cache, kind: str, ttl_s: float) -> None:
        self.cache, self.kind, self.ttl_s = cache, kind, ttl_s
        self._flights: dict[str, asyncio.Future[Entry]] = {}

    async def find(self, key: str) -> Entry | None:
        """What is kept under the key; garbage is nothing."""
        data = await self.cache.get(f"{self.kind}:{key}")
        return None if data is None else decoded(data)

    async def keep(self, key: str, entry: Entry) -> None:
        ttl_s = self.ttl_s if entry.quality >= 1 else min(self.ttl_s, DEGRADED_TTL_S)
        await self.cache.put(f"{self.kind}:{key}", encoded(entry), ttl_s)

    async def of(self, key: str, good: Good, deadline: float | None, work: Work) -> tuple[Entry, How]:
        """An entry that is good enough, and how it came about. Raises what `work` raises, and TimeoutError
        where somebody else's work outlasts the deadline, a time of the monotonic clock."""
        found = await self.find(key)
        if found is not None and good(found):
            return found, "hit"
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait([flight], timeout=None if deadline is None else deadline - monotonic())
            if not flight.done():
                raise TimeoutError
            if not flight.cancelled() and good(entry := flight.result()):
                return entry, "joined"
            # It failed, left, or was content with less: another one may have taken over.
        return await self._lead(key, good, deadline, work)

    async def _lead(self, key: str, good: Good, deadline: float | None, work: Work) -> tuple[Entry, How]:
        """Do the work, unless another process does; who joins meanwhile gets what it gives."""
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            entry, how = await self._alone(key, good, deadline, work)
            flight.set_result(entry)
            return entry, how
        finally:
            del self._flights[key]
            flight.cancel()  # where it has no result

    async def _alone(self, key: str, good: Good, deadline: float | None, work: Work) -> tuple[Entry, How]:
        name = f"{self.kind}:{key}"
        if not await self.cache.claim(name, CLAIM_S):
            left = CLAIM_S if deadline is None else PATIENCE * max(0.0, deadline - monotonic())
            await self.cache.released(name, min(CLAIM_S, left))
            found = await self.find(key)
            if found is not None and good(found):
                return found, "joined"
            return await work(), "miss"
        try:
            entry = await work()
            await self.keep(key, entry)
            return entry, "miss"
        finally:
            await self.cache.release(name)
