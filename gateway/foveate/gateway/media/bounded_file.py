"""Files that media libraries read, with limits on reads, on bytes and on time."""

import re
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from time import monotonic, thread_time
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
        self._marks: re.Pattern[bytes] | None = None
        self._marks_left, self._last_bytes, self._cpu_deadline = 0, b"", float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def allow(self, size: int) -> None:
        """Allow this many bytes to be read from now on."""
        self._bytes_left = size

    def start_header(self, marks: re.Pattern[bytes] | None, limit: int, cpu_s: float) -> None:
        """Limit what is read until `end_header`: occurrences of a pattern, and processor time.

        libav keeps metadata in lists that it searches for each new entry. Thousands of entries take minutes,
        during which it calls back late or not at all.
        """
        self._marks, self._marks_left, self._last_bytes = marks, limit, b""
        self._cpu_deadline = thread_time() + cpu_s

    def end_header(self) -> None:
        """The header is read. Raises ClipTooLarge where a limit has ended it."""
        self.check()
        self._marks, self._cpu_deadline = None, float("inf")

    def check(self) -> None:
        """Raises ClipTooLarge where a limit, and not the file itself, has ended it."""
        if self._marks_left < 0 or thread_time() > self._cpu_deadline:
            raise ClipTooLarge("the clip's header has too many tags, chapters or boxes; remove its metadata")
        if monotonic() > self._deadline:
            raise ClipTooLarge(f"decoding the clip takes over {self._timeout_s:g} s, the server's limit")
        if self._exhausted:
            raise ClipTooLarge("the clip's header or one of its frames is larger than the server reads")

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none after a limit."""
        self._exhausted |= self._bytes_left <= 0 or self._marks_left < 0
        if self._exhausted or monotonic() > self._deadline or thread_time() > self._cpu_deadline:
            return b""
        data = self._file.read(min(size, self._bytes_left) if size >= 0 else self._bytes_left)
        self._bytes_left -= len(data)
        if self._marks is not None:
            joined = self._last_bytes + data  # a mark of two bytes may lie in two reads
            self._marks_left -= len(self._marks.findall(joined))
            self._last_bytes = joined[-1:]
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
