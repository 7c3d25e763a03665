"""The cache of one process: the entry that was asked for least lately goes first."""

import time
from collections import OrderedDict
from collections.abc import Callable


class MemoryCache:
    """For the event loop's thread alone. Others' claims are none of its business: there are no others."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """max_bytes: of keys and values; 0 keeps nothing."""
        self.max_bytes, self.bytes, self.clock = max_bytes, 0, clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        found = self._entries.get(key)
        if found is None:
            return None
        if found[1] <= self.clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[0]

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """In place of what the key held. What is larger than all there is room for is not kept."""
        self._drop(key)
        if len(key) + len(value) > self.max_bytes:
            return
        self._entries[key] = value, self.clock() + ttl_s
        self.bytes += len(key) + len(value)
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= len(key) + len(found[0])

    async def try_claim(self, key: str, for_s: float) -> bytes | bool:
        found = await self.get(key)
        return True if found is None else found

    async def release_claim(self, key: str) -> None:
        pass

    async def wait_released(self, key: str, timeout_s: float) -> None:
        pass

    async def close(self) -> None:
        self._entries.clear()
        self.bytes = 0
