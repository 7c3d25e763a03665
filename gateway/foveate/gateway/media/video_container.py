"""Inspect a video file before any library reads it: its container, whether it is complete, and its tables.

libav trusts the tables of an MP4: a file of a kilobyte that claims a billion samples makes it allocate
gigabytes. A file that is refused here never reaches libav.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from foveate.core.errors import BrokenMedia, ClipTooLarge, UnsupportedMedia
from foveate.core.settings import MIB
from foveate.gateway.media.bounded_file import BoundedFile
from foveate.gateway.media.image_format import CLIP_FORMATS, sniff, unsupported

DemuxerName = Literal["mov", "matroska", "avi"]
"""libav's name of a demuxer."""

MAX_BOXES = 200_000
"""Top-level boxes of an MP4. A fragmented file of an hour has about ten thousand."""
MAX_ENTRIES = 1_000_000
"""Samples that the tables of an MP4 may list. Each costs libav about 75 bytes."""
MAX_HEADER = 16 * MIB
"""Bytes that libav may read before the first frame."""
HEADER_CPU_S = 2.0
"""Processor time in which libav must have read the header, in seconds. A million samples take a tenth."""
MAX_METADATA = 4000
"""Tags, chapters and attachments. libav compares each with all before it. 16 MB of other data hold about a
thousand marks by chance."""
METADATA_MARKS: dict[DemuxerName, re.Pattern[bytes]] = {
    "matroska": re.compile(rb"\x45\xa3|\x73\xc4|\x73\x73|\x61\xa7"),
    "mov": re.compile(rb"data"),
}
"""Bytes that each of these starts with. Matroska's IDs: TagName, ChapterUID, Tag, AttachedFile (RFC 9559); it
keeps all of them until the whole header is read. The tags of an AVI are limited by the time alone."""
CHUNK = 4 * MIB
"""Bytes that are searched at a time."""
CHUNK_OVERLAP = 64
"""Bytes that two chunks share: more than a box header with its entry count."""
EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_SAMPLE_TABLES = {b"stsz": 8, b"stz2": 8, b"trun": 4}
_EDIT_TABLES = {b"elst": 4}
"""Boxes with a table, and the offset of its entry count in the box."""
_REFUSED_BOXES = (b"cmov", b"iinf", b"iloc", b"iref", b"ipma")
"""Compressed headers and the tables of still images. No video needs them, and each can expand enormously."""


@dataclass(frozen=True, slots=True)
class Container:
    """The container of a video file."""

    demuxer: DemuxerName
    complete: bool = True
    """Whether the file is as long as its header says."""
    fragmented: bool = False
    """An MP4 whose tables are spread over the file. Its header does not say how long the video is."""


def is_clip(head: bytes) -> bool:
    """Whether a file with these first bytes is a video, supported or not."""
    if head[:4] == EBML_MAGIC or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return head[4:8] in _FIRST_BOXES and not (sniff(head) or "").startswith("image/")


def inspect_container(file: BoundedFile) -> Container:
    """The container of a file, whose tables are within the limits.

    Raises BrokenMedia, UnsupportedMedia or ClipTooLarge.
    """
    head = file.read_at(0, 4096)
    if not head:
        raise BrokenMedia("the clip is empty")
    if head[:4] == EBML_MAGIC:
        return _inspect_matroska(head, file.size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Container("avi", 0 < int.from_bytes(head[4:8], "little") <= file.size - 8)
    kind = sniff(head)
    # AVIF and HEIC are MP4 files too.
    if head[4:8] in _FIRST_BOXES and not (kind or "").startswith("image/"):
        return _inspect_mp4(file)
    if kind and kind.startswith("image/"):
        raise UnsupportedMedia(f"{kind} is not a clip; send {CLIP_FORMATS}")
    if kind:
        raise unsupported(kind)
    raise BrokenMedia(f"the data is not a clip in a known format; send {CLIP_FORMATS}")


def _inspect_matroska(head: bytes, size: int) -> Container:
    """EBML (RFC 8794): an element is its ID, its length, and its content."""
    if not re.search(rb"\x42\x82.(?:webm|matroska)", head[:256], re.DOTALL):
        raise UnsupportedMedia("this kind of EBML file is not supported; send WebM or Matroska")
    length, width = _vint(head[4:])
    at = 4 + width + (length or 0)
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return Container("matroska")  # another element comes first, so the end of the file is unknown
    length, width = _vint(head[at + 4 :])
    return Container("matroska", length is None or at + 4 + width + length <= size)


def _vint(data: bytes) -> tuple[int | None, int]:
    """A length and its width in bytes; the length is None for "unknown", as in live recordings."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


def _inspect_mp4(file: BoundedFile) -> Container:
    """ISO/IEC 14496-12: a box is its length, its name, and its content."""
    complete, fragmented, entries = True, False, 0
    media: list[tuple[int, int]] = []
    for name, start, end in _boxes(file):
        complete &= end <= file.size
        fragmented |= name == b"moof"
        if name == b"mdat":
            media.append((start, end))
        elif name == b"moov" and end - start <= MAX_HEADER:
            entries += _movie_entries(file.read_at(start, end - start))
        else:
            for chunk in _chunks(file, start, end):
                entries += _table_entries(chunk)
        _check_entries(entries)
    # In a fragmented file, a table of contents may point at a fragment anywhere.
    for start, end in media if fragmented else []:
        for chunk in _chunks(file, start, end):
            entries += _sum_counts(chunk, {b"trun": 4})
            _check_entries(entries)
    return Container("mov", complete, fragmented)


def _check_entries(entries: int) -> None:
    if entries > MAX_ENTRIES:
        raise ClipTooLarge(f"the clip's tables list more than {MAX_ENTRIES} samples, the server's limit")


def _boxes(file: BoundedFile) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each top-level box. An end may lie past the end of the file."""
    at = 0
    for _ in range(MAX_BOXES):
        head = file.read_at(at, 16)
        length, header = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        end = at + length if length else file.size
        if len(head) < header or end < at + header:
            return
        yield head[4:8], at + header, end
        at = end
    raise ClipTooLarge(f"the clip has more than {MAX_BOXES} boxes, the server's limit")


def _chunks(file: BoundedFile, start: int, end: int) -> Iterator[bytes]:
    """Chunks of a file. They overlap so that no box header is missed; a header in two chunks counts twice."""
    for at in range(start, min(end, file.size), CHUNK):
        yield file.read_at(at, min(CHUNK + CHUNK_OVERLAP, end - at))


def _movie_entries(data: bytes) -> int:
    """Index entries that a `moov` box costs libav: the samples of each track, once for each of its edits."""
    entries = before = 0
    for start, end in _tracks(data):
        entries += _table_entries(data[before:start]) + _track_entries(data[start:end])
        before = end
    return entries + _table_entries(data[before:])


def _tracks(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each `trak` box."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 8:
            return
        if data[at + 4 : at + 8] == b"trak":
            yield at, min(at + length, len(data))
        at += length


def _track_entries(data: bytes) -> int:
    _refuse_boxes(data)
    samples = _sum_counts(data, _SAMPLE_TABLES)
    # Every value of uncompressed sound counts as a sample, in one run of samples of length 1. libav makes
    # one entry of a thousand of them.
    run = re.search(rb"stts\0{4}\0\0\0\x01.{4}\0\0\0\x01", data, re.DOTALL)
    if run and data.count(b"stts") == 1 and b"soun" in data and b"vide" not in data:
        samples //= 1000
    return samples * max(1, _sum_counts(data, _EDIT_TABLES))


def _table_entries(data: bytes) -> int:
    """Entries of the tables in any other box. libav reads such tables at any depth."""
    _refuse_boxes(data)
    return _sum_counts(data, _SAMPLE_TABLES) * max(1, _sum_counts(data, _EDIT_TABLES))


def _refuse_boxes(data: bytes) -> None:
    if any(True for name in _REFUSED_BOXES for _ in _box_contents(data, name)):
        raise UnsupportedMedia("this kind of MP4 is not supported; save it again with an uncompressed header")


def _sum_counts(data: bytes, counts: dict[bytes, int]) -> int:
    """The sum of the entry counts in all boxes of these names."""
    positions = [at + offset for name, offset in counts.items() for at in _box_contents(data, name)]
    return sum(int.from_bytes(data[at : at + 4], "big") for at in positions)


def _box_contents(data: bytes, name: bytes) -> Iterator[int]:
    """Where the content of each box of this name starts, for all bytes that could be such a box."""
    at = data.find(name, 4)
    while at >= 0:
        length = int.from_bytes(data[at - 4 : at], "big")
        if length < MAX_HEADER:
            yield at + (12 if length == 1 else 4)
        at = data.find(name, at + 4)
