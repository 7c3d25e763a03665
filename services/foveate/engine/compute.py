"""The one thread of a device that runs forwards; engines of several models take turns on it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Compute:
    """A thread, and the turn to use it. Whoever holds `turn` may decide late what to run."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.free_at = 0.0
        """When what runs is predicted to be done; clock seconds."""
        self._thread = ThreadPoolExecutor(1, "compute")

    def call(self, work: Callable[[], T]) -> T:
        """Run something on the thread and block until it is done: for start-up."""
        return self._thread.submit(work).result()

    async def run(self, work: Callable[[], T]) -> T:
        """Run something on the thread without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
