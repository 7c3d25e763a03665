"""A cache in the memory of one process. The least recently used entry is evicted first."""

import time
from collections import OrderedDict
from collections.abc import Callable


class MemoryCache:
    """Implements `Cache`. Claims have no effect, because no other process uses this cache."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """max_bytes: bound of all keys and values together; 0 stores nothing. clock: returns seconds."""
        self.max_bytes, self.bytes, self.clock = max_bytes, 0, clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        """The value of the key, or None if there is none or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires_at = entry
        if expires_at <= self.clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Replace the value of the key. A value larger than the whole cache is not stored."""
        self._drop(key)
        if len(key) + len(value) > self.max_bytes:
            return
        self._entries[key] = value, self.clock() + ttl_s
        self.bytes += len(key) + len(value)
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= len(key) + len(entry[0])

    async def try_claim(self, key: str, for_s: float) -> bytes | bool:
        """The value of the key, or True: the claim always succeeds."""
        value = await self.get(key)
        return True if value is None else value

    async def release_claim(self, key: str) -> None:
        """Does nothing."""

    async def wait_released(self, key: str, timeout_s: float) -> None:
        """Returns at once."""

    async def close(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self.bytes = 0
