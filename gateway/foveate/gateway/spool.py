"""Spool large request bodies to disk instead of memory, within a limit for all of them together."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from foveate.core.errors import ClientGone, Unavailable
from foveate.core.settings import MIB
from foveate.gateway.body import parse_length
from foveate.gateway.limits import Permit, SpoolBudget
from foveate.gateway.media.image_format import is_supported_image

Medium = bytes | Path
"""The media of a request: in memory, or in a temporary file."""
MEMORY_BYTES, WRITE_BYTES = 4 * MIB, MIB
"""Size up to which a body stays in memory, and the least that is written at a time above that."""


@asynccontextmanager
async def spool_body(
    request: Request, content_length: str, permit: Permit, budget: SpoolBudget
) -> AsyncIterator[Medium]:
    """The whole body: in memory if it is small, else in a file that is removed at the end of the context.

    A body that `content_length` says is too large is refused before it is read. Raises BadRequest,
    BodyTooLarge, Overloaded, Unavailable where the disk is full, and ClientGone.
    """
    budget.check(parse_length(content_length))
    spool = Spool(permit, budget)
    try:
        try:
            async for chunk in request.stream():
                await spool.add(chunk)
        except ClientDisconnect:
            raise ClientGone("the client closed the connection while sending its body") from None
        yield await spool.finish()
    finally:
        await spool.remove()


class Spool:
    """One body while it arrives."""

    def __init__(self, permit: Permit, budget: SpoolBudget) -> None:
        self._permit, self._budget = permit, budget
        self._chunks: list[bytes] = []
        self._pending = self._total = self._on_disk = 0
        """Bytes in `_chunks`, of the body so far, and counted in the budget."""
        self._path: Path | None = None

    async def add(self, chunk: bytes) -> None:
        """Keep or write the next bytes. Raises BodyTooLarge, Overloaded, Unavailable."""
        self._total += len(chunk)
        self._budget.check(self._total)
        self._chunks.append(chunk)
        self._pending += len(chunk)
        if self._path is None and self._total <= MEMORY_BYTES:
            self._permit.reserve(self._total)
        elif self._path is None or self._pending >= WRITE_BYTES:
            await self._write()

    async def finish(self) -> Medium:
        """The whole body, once its last bytes have been added.

        A large image that was sent as video is read into memory, so that it is treated as a small one is.
        Raises BodyTooLarge, Overloaded, Unavailable.
        """
        if self._path is None:
            return b"".join(self._chunks)
        await self._write()
        if not is_supported_image(await asyncio.to_thread(head_of, self._path)):
            return self._path
        self._permit.reserve(self._total)
        return await asyncio.to_thread(self._path.read_bytes)

    async def _write(self) -> None:
        self._budget.reserve(self._pending)
        self._on_disk += self._pending
        chunks, self._chunks, self._pending = self._chunks, [], 0
        try:
            self._path = self._path or new_file()
            await asyncio.to_thread(append, self._path, chunks)
        except OSError:
            raise Unavailable(
                "the server has no disk space for the clip at the moment; retry later"
            ) from None

    async def remove(self) -> None:
        """Delete the file. Also works for a cancelled request, and while a write is running."""
        self._budget.bytes -= self._on_disk
        if self._path:
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(None, self._path.unlink, True))


def new_file() -> Path:
    """An empty temporary file."""
    handle, name = tempfile.mkstemp(prefix="foveate-")
    os.close(handle)
    return Path(name)


def head_of(path: Path) -> bytes:
    """The first 4,096 bytes of a file."""
    with path.open("rb") as file:
        return file.read(4096)


def append(path: Path, chunks: Sequence[bytes]) -> None:
    """Append to a file. Raises FileNotFoundError once it has been removed: it must not be created again."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.writelines(chunks)
