"""What was computed once is kept for those who ask again: answers, and what trunks saw of pictures."""

from typing import Protocol


class Cache(Protocol):
    """Bytes by key, bounded. Whatever goes wrong in here is a miss that is counted, and never an error."""

    async def get(self, key: str) -> bytes | None:
        """What was put under the key, where it is still there."""
        ...

    async def try_claim(self, key: str, for_s: float) -> bytes | bool:
        """What is there; else whether nobody works on it yet: then it is claimed. Others are told that
        somebody does until `release`, and for so many seconds at most."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep it for so many seconds at most."""
        ...

    async def release_claim(self, key: str) -> None:
        """The claim is over, and whatever was put before is there: whoever waits for the key looks again."""
        ...

    async def wait_released(self, key: str, timeout_s: float) -> None:
        """Return when whoever has claimed the key releases it, and after so many seconds at the latest."""
        ...

    async def close(self) -> None: ...
