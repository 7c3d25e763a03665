"""Files that media libraries read, with limits on reads, on bytes and on time."""

from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import BinaryIO, Self

from foveate.core.errors import ClipTooLarge


class ReadLimitedFile(BytesIO):
    """A file in memory with a limit on the number of reads.

    An image of millions of empty chunks is made to be slow: the decoder creates a Python object for each.
    """

    reads_left = 200_000

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes. Raises ValueError after too many reads."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ValueError("the file has too many chunks")
        return super().read(size)


class BoundedFile:
    """A video file for libav. After the deadline, or after the allowed bytes, it reports its end.

    It does not raise inside a callback of the library, because the exception could appear in another call.
    `check` raises afterwards.
    """

    def __init__(self, source: bytes | Path, timeout_s: float) -> None:
        self._file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else source.open("rb", 0)
        self.size = self._file.seek(0, SEEK_END)
        self._file.seek(0)
        self._timeout_s, self._deadline = timeout_s, monotonic() + timeout_s
        self._bytes_left, self._exhausted = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def allow(self, size: int) -> None:
        """Allow this many bytes to be read from now on."""
        self._bytes_left = size

    def check(self) -> None:
        """Raises ClipTooLarge where a limit, and not the file itself, has ended it."""
        if monotonic() > self._deadline:
            raise ClipTooLarge(f"decoding the clip takes over {self._timeout_s:g} s, the server's limit")
        if self._exhausted:
            raise ClipTooLarge("the clip's header or one of its frames is larger than the server reads")

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none after a limit."""
        self._exhausted |= self._bytes_left <= 0
        if self._exhausted or monotonic() > self._deadline:
            return b""
        data = self._file.read(size)
        self._bytes_left -= len(data)
        return data

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Move the position, as `io` defines it; -1 for a `whence` that only libav knows."""
        if whence not in (SEEK_SET, SEEK_CUR, SEEK_END):
            return -1
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in bytes."""
        return self._file.tell()

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes at a position, fewer at the end of the file. Does not count against the allowed bytes.

        Raises ClipTooLarge after the deadline.
        """
        self.check()
        self._file.seek(offset)
        return self._file.read(size)
