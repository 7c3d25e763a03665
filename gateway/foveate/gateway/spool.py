"""Large bodies wait on disk, not in memory, within a bound for all of them together."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from foveate.core.errors import BadRequest, ClientGone, Unavailable
from foveate.core.settings import MIB
from foveate.gateway.limits import Permit, SpoolBudget

Medium = bytes | Path
"""What a client sent: in memory, or in the file where it lies."""
KEEP, PIECE = 4 * MIB, MIB
"""What stays in memory, and what is written at once past that."""


@asynccontextmanager
async def spool_body(
    request: Request, announced: str, visit: Permit, disk: SpoolBudget
) -> AsyncIterator[Medium]:
    """The whole body: in memory where it is small, else in a file that is there until the end.

    What is `announced` too large is refused before a byte of it is read. Raises BadRequest, BodyTooLarge,
    Overloaded, Unavailable where the disk is full, and ClientGone.
    """
    if not (announced.isascii() and announced.isdecimal() and len(announced) < 20):
        raise BadRequest("content-length must be a whole number")
    disk.check(int(announced))
    spool = Spool(visit, disk)
    try:
        try:
            async for chunk in request.stream():
                await spool.add(chunk)
        except ClientDisconnect:
            raise ClientGone("the client left while sending its body") from None
        yield await spool.whole()
    finally:
        await spool.remove()


class Spool:
    """One body as it arrives."""

    def __init__(self, visit: Permit, disk: SpoolBudget) -> None:
        self._visit, self._disk = visit, disk
        self._chunks: list[bytes] = []
        self._held = self._total = self._on_disk = 0
        self._path: Path | None = None

    async def add(self, chunk: bytes) -> None:
        self._total += len(chunk)
        self._disk.check(self._total)
        self._chunks.append(chunk)
        self._held += len(chunk)
        if self._path is None and self._total <= KEEP:
            self._visit.hold(self._total)
        elif self._path is None or self._held >= PIECE:
            await self._write()

    async def whole(self) -> Medium:
        if self._path is None:
            return b"".join(self._chunks)
        await self._write()
        return self._path

    async def _write(self) -> None:
        self._disk.hold(self._held)
        self._on_disk += self._held
        chunks, self._chunks, self._held = self._chunks, [], 0
        try:
            self._path = self._path or new_file()
            await asyncio.to_thread(append, self._path, chunks)
        except OSError:
            raise Unavailable("the server has no room to store the clip now") from None

    async def remove(self) -> None:
        """Also when the request has been cancelled, and while a write is under way."""
        self._disk.bytes -= self._on_disk
        if self._path:
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(None, self._path.unlink, True))


def new_file() -> Path:
    handle, name = tempfile.mkstemp(prefix="foveate-")
    os.close(handle)
    return Path(name)


def append(path: Path, chunks: Sequence[bytes]) -> None:
    """Raises FileNotFoundError once the file has been removed: it must not come back."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.writelines(chunks)
