"""Deployment handles without Ray: real ones exist only while Ray runs, as in the integration tests."""

from collections.abc import AsyncIterator, Callable
from typing import Any


class LocalHandle:
    """Calls the methods of an object in this process, as a handle calls those of a deployment."""

    def __init__(self, target: object, error: Exception | None = None) -> None:
        """error: raised by every call, as if the replica had stopped."""
        self.target, self.error = target, error
        self.broadcasts: list[tuple[str, tuple[object, ...]]] = []

    def options(self, **_: object) -> "LocalHandle":
        return self

    def __getattr__(self, name: str) -> "LocalMethod":
        return LocalMethod(getattr(self.target, name), self.error)

    def broadcast(self, method: str, *args: object) -> "Broadcast":
        self.broadcasts.append((method, args))
        return Broadcast(self.error)


class LocalMethod:
    """One method of a handle."""

    def __init__(self, method: Callable[..., Any], error: Exception | None) -> None:
        self.method, self.error = method, error

    def remote(self, *args: object) -> Any:
        return self.method(*args) if self.error is None else Failed(self.error)


class Failed:
    """The response of a replica that has stopped: awaited or iterated, it raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __await__(self) -> Any:
        raise self.error
        yield

    async def __aiter__(self) -> AsyncIterator[Any]:
        raise self.error
        yield


class Broadcast:
    """The responses of all replicas."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def results_async(self, timeout_s: float) -> None:
        assert timeout_s > 0
        if self.error is not None:
            raise self.error
