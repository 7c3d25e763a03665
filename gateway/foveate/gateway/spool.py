"""Spool large request bodies to disk instead of memory, within a limit for all of them together."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import ClientDisconnect

from foveate.core.errors import ClientGone, Unavailable
from foveate.core.settings import MIB
from foveate.gateway.body import parse_length
from foveate.gateway.body_formats.form import MAX_OVERHEAD_BYTES, FormParser
from foveate.gateway.limits import Permit, SpoolBudget
from foveate.gateway.media.image_format import is_supported_image
from foveate.gateway.media.video_container import is_clip

Medium = bytes | Path
"""The media of a request: in memory, or in a temporary file."""
MEMORY_BYTES, WRITE_BYTES = 4 * MIB, MIB
HEAD_BYTES = 4096
"""First bytes of media, which show whether they are a clip."""


@asynccontextmanager
async def spool_body(
    stream: AsyncIterator[bytes],
    content_length: str,
    permit: Permit,
    budget: SpoolBudget,
    form: FormParser | None = None,
    clip: bool = True,
) -> AsyncIterator[Medium]:
    """The media of a body: in memory if they are small, else in a file that the end of the context removes.

    form: takes the media out of a multipart form. clip: the media are a clip, by their content type; False:
    their first bytes tell, and an image stays in memory. A body that `content_length` says is too large is
    refused before it is read. Raises BadRequest, BodyTooLarge, Overloaded, Unavailable where the disk is
    full, and ClientGone.
    """
    # A form is longer than its file; the file itself is checked while it arrives.
    length = max(0, parse_length(content_length) - (MAX_OVERHEAD_BYTES if form else 0))
    if clip or length > permit.max_body:
        budget.check(length)
    spool = Spool(permit, budget, length, True if clip else None)
    try:
        try:
            async for chunk in stream:
                for piece in form.feed(chunk) if form else (chunk,):
                    await spool.add(piece)
        except ClientDisconnect:
            raise ClientGone("the client closed the connection while sending its body") from None
        if form:
            form.finish()
        yield await spool.finish()
    finally:
        await spool.remove()


class Spool:
    """The media of one body while they arrive."""

    def __init__(
        self, permit: Permit, budget: SpoolBudget, length: int = 0, clip: bool | None = True
    ) -> None:
        """length: bytes that the media have at least, as far as the head of the request says. clip: None: the
        first bytes tell."""
        self._permit, self._budget, self._length, self._clip = permit, budget, length, clip
        self._memory_bytes = min(MEMORY_BYTES, permit.max_body)
        self._chunks: list[bytes] = []
        self._pending = self._total = self._on_disk = 0
        """Bytes in `_chunks`, of the body so far, and counted in the budget."""
        self._path: Path | None = None

    async def add(self, chunk: bytes) -> None:
        """Keep or write the next bytes. Raises BodyTooLarge, Overloaded, Unavailable."""
        self._total += len(chunk)
        self._chunks.append(chunk)
        self._pending += len(chunk)
        if self._clip is None and self._total >= HEAD_BYTES:
            self._recognise()
        if self._clip:
            self._budget.check(self._total)
        if not self._clip or (self._path is None and self._total <= self._memory_bytes):
            self._permit.reserve(self._total)
        elif self._path is None or self._pending >= WRITE_BYTES:
            await self._write()

    def _recognise(self) -> None:
        self._clip = is_clip(b"".join(self._chunks)[:HEAD_BYTES])
        if not self._clip:
            self._permit.check(self._length)

    async def finish(self) -> Medium:
        """The whole body, once its last bytes have been added.

        A large image that was sent as video is read into memory, so that it is treated as a small one is.
        Raises BodyTooLarge, Overloaded, Unavailable.
        """
        if self._path is None:
            return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
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
    """The first HEAD_BYTES of a file."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def append(path: Path, chunks: Sequence[bytes]) -> None:
    """Append to a file. Raises FileNotFoundError once it has been removed: it must not be created again."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.writelines(chunks)
