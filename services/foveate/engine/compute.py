"""The one thread of a device that runs forwards; engines of several models take turns on it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

FULL = 0.8
"""Share of the device's time that models may want together: requests come unevenly."""
MEMORY_S = 1.0
"""Time that a model took of the device so long ago counts for 1/e of what it takes now."""


class Compute:
    """A thread, and the turn to use it. Whoever has the turn may decide late what to run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._turn = asyncio.Lock()
        self._ends_at = self._queued_s = 0.0
        self._used: dict[str, tuple[float, float]] = {}
        self._allowed: dict[str, tuple[float, float]] = {}
        self._wanted: dict[str, tuple[float, float]] = {}
        self._thread = ThreadPoolExecutor(1, "compute")

    @property
    def free_at(self) -> float:
        """When what runs and what waits for its turn is predicted to be done; clock seconds."""
        return max(self._ends_at, self.clock()) + self._queued_s

    @asynccontextmanager
    async def turn(self, name: str, predicted_s: float, allowed_s: float = math.inf) -> AsyncIterator[None]:
        """The device, for a model of that name and for about so many seconds, once it is free.

        allowed_s: what the requests to this model allow for their answers, on the whole.
        """
        self._queued_s += predicted_s
        self._allowed[name] = allowed_s, self.clock()
        try:
            await self._turn.acquire()
        finally:
            self._queued_s = max(0.0, self._queued_s - predicted_s)
        started = self.clock()
        self._ends_at = started + predicted_s
        try:
            yield
        finally:
            self._ends_at = now = self.clock()
            self._used[name] = self._busy(name, now) * MEMORY_S + now - started, now
            self._turn.release()

    def share(self, name: str) -> float:
        """Of the device's time, what models of other names have left of late."""
        now = self.clock()
        return max(0.0, 1 - sum(self._busy(other, now) for other in self._used if other != name))

    def patience(self, name: str) -> float:
        """The least that requests to other models have allowed of late, in seconds; infinite without any."""
        since = self.clock() - MEMORY_S
        others = (said for other, said in self._allowed.items() if other != name)
        return min((allowed_s for allowed_s, at in others if at >= since), default=math.inf)

    def fair(self, name: str, wanted: float) -> float:
        """Of the device's time, what a model may take that would take `wanted` of it if all of its requests
        were answered at full: infinite unless all models together want too much, then less for each alike."""
        now = self.clock()
        self._wanted[name] = wanted, now
        others = [
            share for other, (share, at) in self._wanted.items() if other != name and at >= now - MEMORY_S
        ]
        total = wanted + sum(others)
        return FULL * wanted / total if any(others) and total > FULL else math.inf

    def _busy(self, name: str, now: float) -> float:
        used_s, last = self._used.get(name, (0.0, now))
        return used_s * math.exp((last - now) / MEMORY_S) / MEMORY_S

    def call(self, work: Callable[[], T]) -> T:
        """Run something on the thread and block until it is done: for start-up."""
        return self._thread.submit(work).result()

    async def run(self, work: Callable[[], T]) -> T:
        """Run something on the thread without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
