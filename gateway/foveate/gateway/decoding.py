"""Media are made ready on threads that give way to forwards."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, thread_time
from typing import TypeVar

from foveate.engine.host import Host
from foveate.gateway.lanes import is_large

T = TypeVar("T")

NICE = 10
"""Of decode threads: on a core that both want, a forward then gets nine times as much."""


class Decoding:
    """The pools that read media, and one lane for what takes long. Off the event loop, always."""

    def __init__(self, threads: int, host: Host) -> None:
        self.host = host
        self._pool = ThreadPoolExecutor(threads, "decode", initializer=give_way)
        self._slow = ThreadPoolExecutor(1, "decode-large", initializer=give_way)
        self._clips = ThreadPoolExecutor(threads, "decode-clip", initializer=give_way)

    async def read(self, data: bytes, work: Callable[[], T]) -> tuple[T, float]:
        """What `work` makes of the data, and the seconds it took, waiting left out."""
        pool = self._slow if is_large(data) else self._pool
        with self.host:
            found, seconds, used_s = await asyncio.get_running_loop().run_in_executor(pool, timed, work)
        if pool is self._pool:  # a large one tells nothing of the others, and waits for none of them
            self.host.made(seconds, used_s)
        return found, seconds

    async def watch(self, work: Callable[[], T]) -> tuple[T, float]:
        """As `read`, of a clip: these wait for one another, and no picture waits for them."""
        loop = asyncio.get_running_loop()
        found, seconds, _ = await loop.run_in_executor(self._clips, timed, work)
        return found, seconds

    async def also(self, work: Callable[[], T]) -> T:
        """Other work that does not belong on the event loop: unpacking what is sent, drawing what is
        answered."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        for pool in (self._pool, self._slow, self._clips):
            pool.shutdown(wait=False, cancel_futures=True)


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What it gives, the seconds it took, and those of the processor's."""
    started, used = monotonic(), thread_time()
    found = work()
    return found, monotonic() - started, thread_time() - used


def give_way() -> None:
    """On a decode thread: let forwards go first where cores are short. The threads of a forward wait for one
    another at every step, so that one that has to wait for a core holds up all of them, thirtyfold at
    worst; a picture that is decoded later costs nobody else. Linux counts niceness by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
