"""A video file before any library reads it: which container it is, whether all of it is there, and whether
its tables are honest.

libav believes an MP4's tables: a file of a kilobyte that counts a billion samples makes it fill gigabytes.
What is refused here never reaches it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import BinaryIO, Literal, Self

from foveate.core.errors import BrokenMedia, ClipTooLarge, UnsupportedMedia
from foveate.core.settings import MIB
from foveate.gateway.media.image import sniff

Demuxer = Literal["mov", "matroska", "avi"]

MAX_BOXES = 200_000
"""Of an MP4 at the top level; a fragmented hour has some ten thousand."""
MAX_ENTRIES = 1_000_000
"""Samples that the tables of an MP4 may list. Each costs libav about 75 bytes."""
MAX_HEADER = 16 * MIB
"""What libav may read before the first frame."""
PIECE = 4 * MIB
"""What is searched at once."""
MARGIN = 64
"""More than any box header with its count is long."""
_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_SAMPLES = {b"stsz": 8, b"stz2": 8, b"trun": 4}
_EDITS = {b"elst": 4}
"""How far into a box the number of its entries stands."""
_REFUSED = (b"cmov", b"iinf", b"iloc", b"iref", b"ipma")
"""Compressed headers and the tables of still pictures: no clip needs them, and each is a way to explode."""


class Source:
    """The file, as a library reads it. Past the deadline, or the bytes allowed at once, it just ends.

    It ends rather than raises: from inside a library's callback an exception may turn up in another call.
    """

    def __init__(self, source: bytes | Path, seconds: float) -> None:
        self._file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else source.open("rb", 0)
        self.size = self._file.seek(0, SEEK_END)
        self._file.seek(0)
        self._seconds, self._deadline = seconds, monotonic() + seconds
        self._left, self._overrun = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def allow(self, size: int) -> None:
        """So much may be read from here on."""
        self._left = size

    def check(self) -> None:
        """Whether it ended for its own reasons. Raises ClipTooLarge."""
        if monotonic() > self._deadline:
            raise ClipTooLarge(f"decoding the clip takes over {self._seconds:g} s, the most it may here")
        if self._overrun:
            raise ClipTooLarge("the clip's header or one of its frames is larger than is read here")

    def read(self, size: int = -1) -> bytes:
        self._overrun |= self._left <= 0
        if self._overrun or monotonic() > self._deadline:
            return b""
        data = self._file.read(size)
        self._left -= len(data)
        return data

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if whence not in (SEEK_SET, SEEK_CUR, SEEK_END):
            return -1
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def at(self, offset: int, size: int) -> bytes:
        """Bytes from anywhere; fewer at the end."""
        self.check()
        self._file.seek(offset)
        return self._file.read(size)


@dataclass(frozen=True, slots=True)
class Container:
    """What the first look at a file tells."""

    demuxer: Demuxer
    complete: bool = True
    """The file ends where it says it does."""
    fragmented: bool = False
    """An MP4 whose tables are spread over the file: its header does not know how long it is."""


def is_clip(head: bytes) -> bool:
    """Whether a file that begins so is a clip of some kind."""
    if head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return head[4:8] in _FIRST and not (sniff(head) or "").startswith("image/")


def inspect(source: Source) -> Container:
    """Raises BrokenMedia, UnsupportedMedia, ClipTooLarge."""
    head = source.at(0, 4096)
    if not head:
        raise BrokenMedia("the clip is empty")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(head, source.size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Container("avi", 0 < int.from_bytes(head[4:8], "little") <= source.size - 8)
    kind = sniff(head)
    # AVIF and HEIC are MP4 files too.
    if head[4:8] in _FIRST and not (kind or "").startswith("image/"):
        return _mov(source)
    if kind:
        raise UnsupportedMedia(f"{kind} is not a clip; send MP4, MOV, WebM, Matroska or AVI")
    raise BrokenMedia("the bytes are not a clip in a known format; send MP4, MOV, WebM, Matroska or AVI")


def _matroska(head: bytes, size: int) -> Container:
    """EBML (RFC 8794): an element is its id, its length, and what it holds."""
    if not re.search(rb"\x42\x82.(?:webm|matroska)", head[:256], re.DOTALL):
        raise UnsupportedMedia("this kind of EBML file is not read here; send WebM or Matroska")
    length, width = _vint(head[4:])
    at = 4 + width + (length or 0)
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return Container("matroska")  # something else comes first; then nothing is known of its end
    length, width = _vint(head[at + 4 :])
    return Container("matroska", length is None or at + 4 + width + length <= size)


def _vint(data: bytes) -> tuple[int | None, int]:
    """A length and its width in bytes; None for unknown, as live recordings have it."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


def _mov(source: Source) -> Container:
    """ISO/IEC 14496-12: a box is its length, its name, and what it holds."""
    complete, fragmented, entries = True, False, 0
    media: list[tuple[int, int]] = []
    for name, start, end in _boxes(source):
        complete &= end <= source.size
        fragmented |= name == b"moof"
        if name == b"mdat":
            media.append((start, end))
        elif name == b"moov" and end - start <= MAX_HEADER:
            entries += _moov(source.at(start, end - start))
        else:
            for piece in _pieces(source, start, end):
                entries += _plain(piece)
        _check(entries)
    # In a fragmented file a table of contents may point at a fragment anywhere.
    for start, end in media if fragmented else []:
        for piece in _pieces(source, start, end):
            entries += _total(piece, {b"trun": 4})
            _check(entries)
    return Container("mov", complete, fragmented)


def _check(entries: int) -> None:
    if entries > MAX_ENTRIES:
        raise ClipTooLarge(f"the clip's tables list more than {MAX_ENTRIES} pictures and sounds")


def _boxes(source: Source) -> Iterator[tuple[bytes, int, int]]:
    """Names and extents of the boxes at the top level; an end may lie past the file's."""
    at = 0
    for _ in range(MAX_BOXES):
        head = source.at(at, 16)
        length, header = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        end = at + length if length else source.size
        if len(head) < header or end < at + header:
            return
        yield head[4:8], at + header, end
        at = end
    raise ClipTooLarge(f"the clip is in more than {MAX_BOXES} pieces")


def _pieces(source: Source, start: int, end: int) -> Iterator[bytes]:
    """They overlap, so that nothing is missed between them; what lies in two counts twice."""
    for at in range(start, min(end, source.size), PIECE):
        yield source.at(at, min(PIECE + MARGIN, end - at))


def _moov(data: bytes) -> int:
    """Index entries that the header will cost: for each track its samples, once for each of its edits."""
    entries = before = 0
    for start, end in _tracks(data):
        entries += _plain(data[before:start]) + _track(data[start:end])
        before = end
    return entries + _plain(data[before:])


def _tracks(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 8:
            return
        if data[at + 4 : at + 8] == b"trak":
            yield at, min(at + length, len(data))
        at += length


def _track(data: bytes) -> int:
    _refuse(data)
    samples = _total(data, _SAMPLES)
    # Of uncompressed sound every value counts as a sample: one run, each of length 1. libav takes a
    # thousand of them for one entry.
    run = re.search(rb"stts\0{4}\0\0\0\x01.{4}\0\0\0\x01", data, re.DOTALL)
    if run and data.count(b"stts") == 1 and b"soun" in data and b"vide" not in data:
        samples //= 1000
    return samples * max(1, _total(data, _EDITS))


def _plain(data: bytes) -> int:
    """Entries of the tables in any other box. libav finds them however they are nested."""
    _refuse(data)
    return _total(data, _SAMPLES) * max(1, _total(data, _EDITS))


def _refuse(data: bytes) -> None:
    if any(True for name in _REFUSED for _ in _found(data, name)):
        raise UnsupportedMedia("this kind of MP4 is not read here; save it again with a plain header")


def _total(data: bytes, counts: dict[bytes, int]) -> int:
    """What all boxes of these names count together."""
    places = [at + offset for name, offset in counts.items() for at in _found(data, name)]
    return sum(int.from_bytes(data[at : at + 4], "big") for at in places)


def _found(data: bytes, name: bytes) -> Iterator[int]:
    """Where the inside of a box of this name begins, for whatever can be one."""
    at = data.find(name, 4)
    while at >= 0:
        length = int.from_bytes(data[at - 4 : at], "big")
        if length < MAX_HEADER:
            yield at + (12 if length == 1 else 4)
        at = data.find(name, at + 4)
