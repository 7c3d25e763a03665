"""Computes a value once for all requests that ask for it at the same time, and caches it."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Literal

from foveate.cache import Cache
from foveate.cache.entry import CacheEntry, decode_entry, encode_entry

CacheResult = Literal["hit", "coalesced", "miss"]
"""Found in the cache; computed by a concurrent request; computed by this request."""
Accept = Callable[[CacheEntry], bool]
"""Whether an entry is good enough for the request."""
Compute = Callable[[], Awaitable[CacheEntry]]

DEGRADED_TTL_S = 5.0
"""Seconds that an entry below full quality is stored. It was computed under load, which may end."""
CLAIM_TTL_S = 10.0
"""Seconds that a claim of another process is respected. After them, that process counts as gone."""
MAX_WAIT_SHARE = 0.5
"""Share of the time to its deadline that a request waits for a concurrent computation before its own."""


class SingleFlight:
    """The entries of one kind in a cache."""

    def __init__(self, cache: Cache, kind: str, ttl_s: float, max_entry_bytes: int) -> None:
        """kind: prefix of all keys. max_entry_bytes: entries with larger parts are not stored."""
        self.cache, self.kind, self.ttl_s, self.max_entry_bytes = cache, kind, ttl_s, max_entry_bytes
        self._flights: dict[str, asyncio.Future[CacheEntry]] = {}

    async def get(self, key: str) -> CacheEntry | None:
        """The cached entry, or None. Bytes that cannot be decoded count as no entry."""
        data = await self.cache.get(f"{self.kind}:{key}")
        return None if data is None else decode_entry(data)

    async def put(self, key: str, entry: CacheEntry) -> None:
        """Store an entry. One below full quality, or a short-lived one, is stored for DEGRADED_TTL_S only."""
        if sum(map(len, entry.parts)) <= self.max_entry_bytes:
            long_lived = entry.quality >= 1 and not entry.short_lived
            ttl_s = self.ttl_s if long_lived else min(self.ttl_s, DEGRADED_TTL_S)
            await self.cache.put(f"{self.kind}:{key}", encode_entry(entry), ttl_s)

    async def get_or_compute(
        self, key: str, accept: Accept, deadline: float | None, compute: Compute
    ) -> tuple[CacheEntry, CacheResult]:
        """An accepted entry, and where it came from. Raises what `compute` raises.

        deadline: of the request, on the monotonic clock. The request waits for a concurrent computation for
        at most MAX_WAIT_SHARE of the time until then, and then computes the entry too.
        """
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait([flight], timeout=_max_wait_s(deadline))
            if not flight.done():
                return await compute(), "miss"
            if not flight.cancelled() and accept(entry := flight.result()):
                return entry, "coalesced"
            # The computation failed, was cancelled or gave too low a quality. Another request may have
            # started the next one.
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            entry, result = await self._lead(key, accept, deadline, compute)
            flight.set_result(entry)
            return entry, result
        finally:
            del self._flights[key]
            flight.cancel()  # no effect on a flight that has a result

    async def _lead(
        self, key: str, accept: Accept, deadline: float | None, compute: Compute
    ) -> tuple[CacheEntry, CacheResult]:
        """Read the cache, and compute the entry unless another process has it or computes it."""
        name = f"{self.kind}:{key}"
        claim = await self.cache.try_claim(name, CLAIM_TTL_S)
        if isinstance(claim, bytes):
            cached = decode_entry(claim)
            if cached is not None and accept(cached):
                return cached, "hit"
        elif not claim:
            max_wait_s = _max_wait_s(deadline)
            await self.cache.wait_released(
                name, CLAIM_TTL_S if max_wait_s is None else min(CLAIM_TTL_S, max_wait_s)
            )
            cached = await self.get(key)
            if cached is not None and accept(cached):
                return cached, "coalesced"
        try:
            entry = await compute()
            await self.put(key, entry)
        finally:
            if claim is True:
                await self.cache.release_claim(name)
        return entry, "miss"


def _max_wait_s(deadline: float | None) -> float | None:
    return None if deadline is None else MAX_WAIT_SHARE * max(0.0, deadline - monotonic())
