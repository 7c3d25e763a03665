"""Thread pools that decode media and render answers, at a lower priority than forwards."""

import asyncio
import hashlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic, thread_time
from typing import TypeVar

from foveate.core.heap import trim_heap
from foveate.core.model import ModelCard
from foveate.core.settings import DEFAULTS
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.limits import MemoryBudget
from foveate.gateway.media.image_size import decoded_bytes, is_large, working_bytes
from foveate.gateway.spool import Medium

T = TypeVar("T")

NICE = 10
"""Niceness of decode threads: a forward gets nine times as much of a core that both want."""
SMALL_BYTES = 2**17
"""Media up to this size are hashed, and JSON is parsed, on the event loop, in a tenth of a millisecond."""
CHUNK_BYTES = 2**20
"""Bytes of a file that are hashed at a time."""


class Decoding:
    """The thread pools for decoding and rendering. Large images and clips have pools of their own, so that
    they never delay small images. The event loop is never blocked. Work on large images waits for its share
    of a memory budget."""

    def __init__(
        self, threads: int, host_load: HostLoadMonitor, max_bytes: int = DEFAULTS["decode_bytes"]
    ) -> None:
        """threads: of each pool, except for the one thread for large images. max_bytes: for all large images
        together, at the sizes that `image_size` estimates."""
        self.host_load, self.memory = host_load, MemoryBudget(max_bytes)
        self._pools = {
            pool: ThreadPoolExecutor(1 if pool == "large" else threads, pool, initializer=lower_priority)
            for pool in ("images", "large", "clips", "masks", "schemas", "other")
        }

    async def decode_image(
        self, name: str, data: bytes, work: Callable[[], T], max_pixels: int = DEFAULTS["max_pixels"]
    ) -> tuple[T, float]:
        """Run `work`, which decodes an image for the model of that name: its result and its seconds.

        The seconds exclude the wait for a thread. A large image has a pool of its own and does not count in
        the estimate for other images. max_pixels: `work` decodes no larger image.
        """
        if not is_large(data):
            return await self._run("images", name, work)
        async with self._large(decoded_bytes(data, max_pixels)):
            return await self._run("large", name, work)

    async def decode_video(self, name: str, work: Callable[[], T]) -> tuple[T, float]:
        """As `decode_image`, for a clip."""
        return await self._run("clips", name, work)

    async def render(self, name: str, work: Callable[[], T], pixels: int = 0) -> T:
        """Run `work`, which renders an answer of the model of that name. pixels: of the rendered image."""
        async with self._large(working_bytes(pixels)):
            return (await self._run("masks", f"{name} rendering", work))[0]

    @asynccontextmanager
    async def _large(self, needed: int) -> AsyncIterator[None]:
        """Hold so many bytes of memory; after the last large image, give free memory back to the system."""
        try:
            async with self.memory.share(needed):
                yield
        finally:  # an image that does not decode has taken memory too
            if needed and self.memory.free == self.memory.max_bytes:
                self._pools["large"].submit(trim_heap)

    def decode_wait_s(self, card: ModelCard) -> float:
        """Seconds until a request for this model that arrives now is decoded."""
        return self.host_load.timer("clips" if card.frames else "images", card.name).wait_s

    def render_wait_s(self, card: ModelCard) -> float:
        """Seconds until an answer of this model that is ready now is rendered."""
        return self.host_load.timer("masks", f"{card.name} rendering").wait_s

    async def _run(self, pool: str, name: str, work: Callable[[], T]) -> tuple[T, float]:
        loop, timer = asyncio.get_running_loop(), self.host_load.timer(pool, name)
        with timer:
            result, seconds, cpu_s = await loop.run_in_executor(self._pools[pool], timed, work)
        timer.record(seconds, cpu_s)
        return result, seconds

    async def digest(self, context: str, data: Medium) -> str:
        """A hash of the media and of `context`, which keeps different questions about them apart.

        Small media are hashed at once: a change of threads would take longer.
        """
        if isinstance(data, bytes) and len(data) <= SMALL_BYTES:
            return digest_of(context, data)
        return await self.run(lambda: digest_of(context, data))

    async def run(self, work: Callable[[], T], pool: str = "other") -> T:
        """Run other work that would block the event loop, such as parsing a large body."""
        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], work)

    def close(self) -> None:
        """Stop the pools without waiting for them."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def digest_of(context: str, data: Medium) -> str:
    """BLAKE2b hash of the text and the media, in hexadecimal."""
    digest = hashlib.blake2b(context.encode(), digest_size=24)
    if isinstance(data, bytes):
        digest.update(data)
    else:
        with data.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """The result of `work`, its wall time and its processor time, in seconds."""
    started, cpu_started = monotonic(), thread_time()
    result = work()
    return result, monotonic() - started, thread_time() - cpu_started


def lower_priority() -> None:
    """Lower the priority of the calling decode thread, so that forwards run first where cores are short.

    The threads of a forward wait for each other at every step: if one of them waits for a core, all of them
    do, and the forward may take thirty times as long. A later decode delays only its own request. Linux
    applies niceness to each thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
