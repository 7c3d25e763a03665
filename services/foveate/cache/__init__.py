"""Caches of responses and image features. This package defines the protocol of a store of bytes by key."""

from typing import Protocol


class Cache(Protocol):
    """A bounded store of bytes. A failure inside the store counts as a miss and never raises an error.

    A claim marks a key whose value is being computed, so that other processes wait in place of computing it
    too. Use a cache only on the event loop's thread.
    """

    async def get(self, key: str) -> bytes | None:
        """The value of the key, or None."""
        ...

    async def try_claim(self, key: str, for_s: float) -> bytes | bool:
        """The value of the key; without a value, True if the caller has the claim now, False if another has.

        for_s: the claim ends after this many seconds, or at `release_claim`.
        """
        ...

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store the value for at most this many seconds."""
        ...

    async def release_claim(self, key: str) -> None:
        """End the caller's claim and wake the waiters. A value that was put before is visible to them."""
        ...

    async def wait_released(self, key: str, timeout_s: float) -> None:
        """Return when the claim of the key is released, and after this many seconds at the latest."""
        ...

    async def close(self) -> None:
        """Free all resources."""
        ...
