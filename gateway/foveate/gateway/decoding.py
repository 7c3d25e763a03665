"""Media are made ready on threads that give way to forwards."""

import asyncio
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, thread_time
from typing import TypeVar

from foveate.core.model import ModelCard
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.media.image_size import is_large
from foveate.gateway.spool import Medium

T = TypeVar("T")

NICE = 10
"""Of decode threads: on a core that both want, a forward then gets nine times as much."""


SMALL_BYTES = 2**17
"""A tenth of a millisecond of hashing."""
CHUNK_BYTES = 2**20


class Decoding:
    """The pools that read media and draw answers, and one lane for what takes long. Off the event loop,
    always."""

    def __init__(self, threads: int, host: HostLoadMonitor) -> None:
        self.host = host
        self._pools = {
            pool: ThreadPoolExecutor(1 if pool == "large" else threads, pool, initializer=give_way)
            for pool in ("pictures", "large", "clips", "masks", "other")
        }

    async def read(self, name: str, data: bytes, work: Callable[[], T]) -> tuple[T, float]:
        """What `work` makes of a picture for the model of that name, and the seconds it took, waiting left
        out. A large one tells nothing of the others, and waits for none of them."""
        return await self._do("large" if is_large(data) else "pictures", name, work)

    async def watch(self, name: str, work: Callable[[], T]) -> tuple[T, float]:
        """As `read`, of a clip: these wait for one another, and no picture waits for them."""
        return await self._do("clips", name, work)

    async def draw(self, name: str, work: Callable[[], T]) -> T:
        """The same of what a model answered: nothing that is read waits for it."""
        return (await self._do("masks", f"{name} drawn", work))[0]

    def wait_s(self, card: ModelCard) -> float:
        """Seconds until a medium for this model is read that comes now."""
        return self.host.timer("clips" if card.frames else "pictures", card.name).wait_s

    def drawing_s(self, card: ModelCard) -> float:
        """Seconds until an answer of this model is drawn that is ready now."""
        return self.host.timer("masks", f"{card.name} drawn").wait_s

    async def _do(self, pool: str, name: str, work: Callable[[], T]) -> tuple[T, float]:
        loop, kind = asyncio.get_running_loop(), self.host.timer(pool, name)
        with kind:
            found, seconds, used_s = await loop.run_in_executor(self._pools[pool], timed, work)
        kind.record(seconds, used_s)
        return found, seconds

    async def digest(self, told: str, data: Medium) -> str:
        """Of a medium, and of what else tells apart what must not be mixed. What is small is hashed in less
        time than it takes to ask another thread."""
        if isinstance(data, bytes) and len(data) <= SMALL_BYTES:
            return digest_of(told, data)
        return await self.also(lambda: digest_of(told, data))

    async def also(self, work: Callable[[], T]) -> T:
        """Other work that does not belong on the event loop: unpacking what is sent."""
        return await asyncio.get_running_loop().run_in_executor(self._pools["other"], work)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def digest_of(told: str, data: Medium) -> str:
    digest = hashlib.blake2b(told.encode(), digest_size=24)
    if isinstance(data, bytes):
        digest.update(data)
    else:
        with data.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


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
