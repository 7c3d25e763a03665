"""Decode JPEG files: complete ones, and those with harmless faults that every viewer accepts.

libjpeg warns about both lost pixels and harmless bytes, and TurboJPEG reports only the first warning. So each
decode is strict: it fails at any warning. A file with a harmless fault is repaired, and decoded strictly
again, so that no later warning of real damage stays hidden.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import simplejpeg
from numpy import uint8
from numpy.typing import NDArray

from foveate.gateway.media.image_format import Size

Decoded = TypeVar("Decoded")

MAX_REPAIRS = 8
"""Repairs of one file. Each costs one decode up to the fault."""
MAX_SEGMENTS = 300
"""Header segments that are read. A profile of the largest size takes 255."""
MAX_MARKERS = 100_000
"""Markers in the scans of a file that is repaired."""
MAX_FILLER = 16
"""Bytes before a marker that may have any value. More are filler only if all have the same value: the rest
of a damaged scan looks different."""

SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
ICC_NAME = b"ICC_PROFILE\0"
RESTARTS = range(0xD0, 0xD8)
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Markers of a frame header: baseline, extended and progressive, with Huffman or arithmetic coding."""
_PROGRESSIVE = (0xC2, 0xCA)
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")


def read_header(data: bytes) -> tuple[Size, str, bytes]:
    """Width and height, the name of the colour space, and the data, repaired where its header is faulty.

    Raises ValueError.
    """
    (height, width, space, _), data = _with_repairs(data, simplejpeg.decode_jpeg_header)
    return (int(width), int(height)), str(space), data


def decode_pixels(data: bytes, colorspace: str, size: Size) -> tuple[NDArray[uint8], bytes]:
    """(height, width, channels) at the smallest scale that is at least `size`, and the repaired data.

    colorspace: `RGB`, or `CMYK` for a file of inks, which are stored inverted. Raises ValueError for a file
    whose pixels are not all there.
    """
    width, height = size
    return _with_repairs(
        data,
        lambda file: simplejpeg.decode_jpeg(
            file, colorspace, min_width=width, min_height=height, strict=True
        ),
    )


def read_metadata(data: bytes) -> tuple[bytes, bytes]:
    """The EXIF block and the colour profile of a file; empty where it has none, or a damaged one."""
    exif, parts = b"", dict[int, bytes]()
    total = 0
    for marker, at, end in _header_segments(data):
        if marker == 0xE1 and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 10 : end]
        elif marker == 0xE2 and data[at + 4 : at + 16] == ICC_NAME and end - at > 18:
            total = data[at + 17]
            parts[data[at + 16]] = data[at + 18 : end]
    if parts.keys() != set(range(1, total + 1)):
        return exif, b""
    return exif, b"".join(parts[number] for number in sorted(parts))


def _with_repairs(data: bytes, decode: Callable[[bytes], Decoded]) -> tuple[Decoded, bytes]:
    for _ in range(MAX_REPAIRS):
        try:
            return decode(data), data
        except ValueError as error:
            repaired = _repair(data, str(error))
            if repaired is None or repaired == data:
                raise
            data = repaired
    return decode(data), data


def _repair(data: bytes, warning: str) -> bytes | None:
    """The file without the fault that libjpeg warns about; None where pixels may be lost."""
    if match := _EXTRANEOUS.search(warning):
        clean = _clean_header(data)
        return clean if clean != data else _remove_filler(data, int(match[1]), int(match[2], 16))
    if "Premature end of JPEG file" in warning:
        return data + EOI if _scans_are_complete(data) else None
    if re.search("JFIF revision|Adobe color transform|bad ICC marker|Invalid SOS parameters", warning):
        return _clean_header(data)
    return None


def _header_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan. Between them may lie filler."""
    at, last = len(SOI), len(data) - 4
    for _ in range(MAX_SEGMENTS):
        if at > last:
            return
        if data[at] != 0xFF or data[at + 1] in (0, 0xFF):
            match = _MARKER.search(data, at)
            if match is None or match.end() - 2 > last:
                return
            at = match.end() - 2
        marker = data[at + 1]
        if marker in (0xDA, 0xD9):
            return
        start, at = at, at + 2 + (data[at + 2] << 8 | data[at + 3])
        yield marker, start, at


def _header_end(data: bytes) -> int:
    return max((end for _, _, end in _header_segments(data)), default=len(SOI))


def _frame_header(data: bytes) -> bytes:
    """The segment that lists the components; empty where there is none."""
    return next((data[at:end] for marker, at, end in _header_segments(data) if marker in _FRAMES), b"")


def _clean_header(data: bytes) -> bytes:
    """The file with its header as libjpeg reads it: without filler, and with the usual values in place of
    those that it ignores."""
    frame, clean = _frame_header(data), [SOI]
    profile_is_damaged = not read_metadata(data)[1]
    for marker, at, end in _header_segments(data):
        segment = data[at:end]
        if marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) > 9:
            segment = segment[:9] + b"\1" + segment[10:]
        elif marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) > 15 and segment[15] > 2:
            inks = frame[9:10] == b"\4"
            segment = segment[:15] + (b"\2" if inks else b"\1") + segment[16:]
        elif marker == 0xE2 and segment[4:16] == ICC_NAME and profile_is_damaged:
            continue
        clean.append(segment)
    scan = data.find(SOS, _header_end(data))
    if scan < 0:
        return data
    rest = data[scan:]
    if frame and frame[1] not in _PROGRESSIVE:
        # A sequential scan always holds all coefficients at full precision.
        end = 2 + int.from_bytes(rest[2:4], "big")
        rest = rest[: end - 3] + b"\0\x3f\0" + rest[end:]
    return b"".join([*clean, rest])


def _scan_markers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each marker from the first scan on: its code, where it starts, and where its segment ends."""
    at = _header_end(data)
    for _ in range(MAX_MARKERS):
        match = _MARKER.search(data, at)
        if match is None:
            return
        code, at = match[1][0], match.end()
        if not 0xD0 <= code <= 0xD9:
            at += int.from_bytes(data[at : at + 2], "big")
        yield code, match.start(), at
        if code == 0xD9:
            return


def _remove_filler(data: bytes, count: int, code: int) -> bytes | None:
    """The file without filler before markers of this code; None where it may be data.

    libjpeg has counted this many bytes before such a marker.
    """
    if code == EOI[1] and not _scans_are_complete(data):
        return None
    # The count does not locate zeros: it adds up over restart intervals, without the bytes that are in
    # libjpeg's buffer, and a marker occurs in every eighth interval. One in thousands of intervals ends in a
    # zero of its own, hardly any in two.
    codes = RESTARTS if code in RESTARTS else (code,)
    for least in (2, 1):
        clean = _remove_zeros(data, codes, least)
        if clean != data:
            return clean
    ends = [start for other, start, _ in _scan_markers(data) if other == code]
    if len(ends) != 1 or (count > MAX_FILLER and len(set(data[ends[0] - count : ends[0]])) > 1):
        return None
    return data[: ends[0] - count] + data[ends[0] :]


def _remove_zeros(data: bytes, codes: Collection[int], least: int) -> bytes:
    """The file without zeros, at least this many, before markers of these codes.

    All of them are removed: where a file has lost data and zeros stand in its place, a decoder takes the
    first of them for data.
    """
    kept, at, begin = list[bytes](), 0, 0
    for code, start, end in _scan_markers(data):
        content = data[begin:start].rstrip(b"\0")
        # After 0xff in a scan, a zero belongs to it.
        zeros = start - begin - len(content) - content.endswith(b"\xff")
        if code in codes and zeros >= least:
            kept.append(data[at : start - zeros])
            at = start
        begin = end
    return b"".join([*kept, data[at:]])


def _scans_are_complete(data: bytes) -> bool:
    """Whether the scans hold every coefficient of every component at full precision (ITU-T T.81, annex G)."""
    frame = _frame_header(data)
    if len(frame) < 10 or len(frame) < 10 + 3 * frame[9]:
        return False
    precision = {frame[10 + 3 * number]: [1] * 64 for number in range(frame[9])}
    for code, start, end in _scan_markers(data):
        if code != 0xDA:
            continue
        scan = data[data.index(b"\xda", start) + 1 : end]
        if len(scan) < 6:
            return False
        first, last, low = scan[-3], scan[-2], scan[-1] & 15
        for component in scan[3:-3:2]:
            if component in precision:
                precision[component][first : last + 1] = [low] * (last + 1 - first)
    return not any(any(lows) for lows in precision.values())
