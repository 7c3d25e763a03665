"""Video files that are made to cost memory or time before a frame is decoded, each in a few lines."""

import struct
from collections.abc import Callable
from functools import partial

from tests.support.video_samples import FRAGMENTED, box, clip

MIB = 2**20


def in_box(path: tuple[bytes, ...], inside: bytes) -> bytes:
    """An MP4 with more content at the end of the box at this path in `moov`."""
    data = clip(count=3)
    at, starts = data.index(b"moov") - 4, []
    starts.append(at)
    for name in path:
        at = data.index(name, at + 8) - 4
        starts.append(at)
    end = at + int.from_bytes(data[at : at + 4], "big")
    grown = bytearray(data)
    for start in starts:
        length = int.from_bytes(data[start : start + 4], "big")
        grown[start : start + 4] = struct.pack(">I", length + len(inside))
    grown[end:end] = inside
    return bytes(grown)


def table(name: bytes, width: int, size: int = 15 * MIB) -> bytes:
    """An MP4 with one more sample table, full of entries of this width in bytes."""
    entries = size // width
    return in_box(
        (b"trak", b"mdia", b"minf", b"stbl"), box(name, bytes(4) + struct.pack(">I", entries) + bytes(size))
    )


def claimed(name: bytes, path: tuple[bytes, ...] = (b"trak", b"mdia", b"minf", b"stbl")) -> bytes:
    """An MP4 with a table that claims 2^28 entries and holds none."""
    return in_box(path, box(name, bytes(4) + struct.pack(">IIII", 2**28, 2**28, 2**28, 2**28)))


def nested(name: bytes, depth: int) -> bytes:
    """An MP4 with boxes in boxes."""
    inside = b""
    for _ in range(depth):
        inside = box(name, inside)
    return in_box((), inside)


def mp4_tags(count: int) -> bytes:
    """An MP4 with this many different metadata keys."""
    names = [b"key%07d" % number for number in range(count)]
    keys = box(b"keys", bytes(4) + struct.pack(">I", count) + b"".join(box(b"mdta", name) for name in names))
    items = b"".join(
        struct.pack(">II", 25, number + 1) + box(b"data", struct.pack(">II", 1, 0) + b"x")
        for number in range(count)
    )
    handler = box(b"hdlr", bytes(8) + b"mdta" + bytes(13))
    return in_box((), box(b"meta", handler + keys + box(b"ilst", items)))


def tracks(count: int) -> bytes:
    """An MP4 with copies of its track."""
    data = clip(count=3)
    at = data.index(b"trak") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    return in_box((), data[at : at + length] * count)


def fragments(count: int) -> bytes:
    """A fragmented MP4 with copies of its last fragment's header."""
    data = clip(count=12, muxing=FRAGMENTED)
    at = data.rindex(b"moof") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    return data[:at] + data[at : at + length] * count + data[at:]


def element(name: bytes, inside: bytes) -> bytes:
    """An element of EBML with a length of eight bytes."""
    return name + struct.pack(">Q", len(inside) | 1 << 56) + inside


def in_segment(inside: bytes) -> bytes:
    """A WebM with more elements at the start of its segment, whose length is unknown."""
    data = clip("libvpx", "webm", 3, live=True)
    at = data.index(b"\x18\x53\x80\x67") + 4
    return data[:at] + b"\x01" + b"\xff" * 7 + inside + data[at + 8 :]


def mkv_tags(count: int) -> bytes:
    """A WebM with this many different tags."""
    simple = b"".join(
        element(b"\x67\xc8", element(b"\x45\xa3", b"k%07d" % n) + element(b"\x44\x87", b"x"))
        for n in range(count)
    )
    return in_segment(element(b"\x12\x54\xc3\x67", element(b"\x73\x73", simple)))


def mkv_nested(name: bytes, depth: int, unknown: bool) -> bytes:
    """A WebM with elements in elements, of known or unknown length."""
    if unknown:
        return in_segment((name + b"\x01" + b"\xff" * 7) * depth)
    inside = b""
    for _ in range(min(depth, 2000)):
        inside = element(name, inside)
    return in_segment(inside)


def mkv_cues(count: int) -> bytes:
    """A WebM with an index of this many entries."""
    point = element(b"\xbb", b"\xb3\x81\x01" + element(b"\xb7", b"\xf7\x81\x01\xf1\x81\x01"))
    return in_segment(element(b"\x1c\x53\xbb\x6b", point * count))


def mkv_tracks(count: int) -> bytes:
    """A WebM with this many tracks."""
    track = element(b"\xae", b"\xd7\x81\x02\x83\x81\x01\x86\x85V_VP8")
    return in_segment(element(b"\x16\x54\xae\x6b", track * count))


def mkv_attachment(size: int) -> bytes:
    """A WebM with an attached file."""
    file = b"\x46\x6e\x81a" + b"\x46\x60\x83a/b" + b"\x46\xae\x81\x07" + element(b"\x46\x5c", bytes(size))
    return in_segment(element(b"\x19\x41\xa4\x69", element(b"\x61\xa7", file)))


def mkv_chapters(count: int) -> bytes:
    """A WebM with this many chapters, whose numbers go down."""
    atoms = b"".join(
        element(
            b"\xb6", b"\x73\xc4\x83" + (count - n).to_bytes(3, "big") + b"\x91\x83" + n.to_bytes(3, "big")
        )
        for n in range(1, count)
    )
    return in_segment(element(b"\x10\x43\xa7\x70", element(b"\x45\xb9", atoms)))


def in_avi(inside: bytes, before: bytes) -> bytes:
    """An AVI with more chunks before its first list of this kind."""
    data = clip("mpeg4", "avi", 3)
    at = data.index(before) - 8
    return data[:4] + struct.pack("<I", len(data) + len(inside) - 8) + data[8:at] + inside + data[at:]


def chunk(name: bytes, inside: bytes) -> bytes:
    """A chunk of RIFF."""
    return name + struct.pack("<I", len(inside)) + inside


def avi_index(count: int) -> bytes:
    """An AVI whose index lists this many chunks."""
    data = clip("mpeg4", "avi", 3)
    at = data.index(b"idx1")
    index = chunk(b"idx1", struct.pack("<4sIII", b"00dc", 16, 4, 8) * count)
    return data[:4] + struct.pack("<I", at + len(index) - 8) + data[8:at] + index


def avi_tags(count: int) -> bytes:
    """An AVI with this many different tags."""
    names = (
        bytes((65 + n // 17576 % 26, 65 + n // 676 % 26, 65 + n // 26 % 26, 65 + n % 26))
        for n in range(count)
    )
    return in_avi(chunk(b"LIST", b"INFO" + b"".join(chunk(name, b"x\0") for name in names)), b"movi")


def avi_streams(count: int) -> bytes:
    """An AVI with copies of its stream's header."""
    data = clip("mpeg4", "avi", 3)
    at = data.index(b"strl") - 8
    end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return in_avi(data[at:end] * count, b"strl")


ANY = (200, 413, 415, 422)
CLAIMING = [
    "stts", "ctts", "stsc", "stco", "co64", "stss", "stps", "sdtp", "elst", "sbgp", "sgpd", "senc", "saiz",
    "saio", "subs", "keys", "dref", "stsd", "sidx", "tfra", "pssh", "hvcC",
    "avcC", "esds", "chap", "trun", "uuid",
]  # fmt: skip
"""Boxes that may hold a table."""

CLIPS: dict[str, tuple[Callable[[], bytes], tuple[int, ...], int]] = {
    "mp4, stts of 15 MB": (lambda: table(b"stts", 8), ANY, 130),
    "mp4, ctts of 15 MB": (lambda: table(b"ctts", 8), ANY, 130),
    "mp4, stsc of 15 MB": (lambda: table(b"stsc", 12), ANY, 130),
    "mp4, stco of 15 MB": (lambda: table(b"stco", 4), ANY, 130),
    "mp4, co64 of 15 MB": (lambda: table(b"co64", 8), ANY, 130),
    "mp4, stss of 15 MB": (lambda: table(b"stss", 4), ANY, 130),
    "mp4, elst of 15 MB": (lambda: table(b"elst", 12), ANY, 130),
    "mp4, sbgp of 15 MB": (lambda: table(b"sbgp", 8), ANY, 130),
    "mp4, senc of 15 MB": (lambda: table(b"senc", 8), ANY, 130),
    **{f"mp4, {name} claims 2^28 entries": (partial(claimed, name.encode()), ANY, 60) for name in CLAIMING},
    "mp4, 100,000 metadata keys": (lambda: mp4_tags(100_000), ANY, 130),
    "mp4, 300,000 metadata keys": (lambda: mp4_tags(300_000), ANY, 130),
    "mp4, 1 million boxes": (lambda: in_box((), box(b"free", b"") * 1_000_000), ANY, 90),
    "mp4, 1 million top-level boxes": (lambda: clip(count=3) + box(b"free", b"") * 1_000_000, (413,), 90),
    "mp4, 400,000 user data boxes": (
        lambda: in_box((), box(b"udta", box(b"\xa9nam", b"\0\1\0\0a")) * 400_000), ANY, 90),
    "mp4, 3,000 boxes deep": (lambda: nested(b"udta", 3000), ANY, 60),
    "mp4, 3,000 moov deep": (lambda: nested(b"moov", 3000), ANY, 60),
    "mp4, 10,000 tracks": (lambda: tracks(10_000), ANY, 130),
    "mp4, 100,000 fragments": (lambda: fragments(100_000), ANY, 130),
    "mkv, 30,000 tags": (lambda: mkv_tags(30_000), ANY, 130),
    "mkv, 60,000 tags": (lambda: mkv_tags(60_000), ANY, 130),
    "mkv, tags 2,000 deep": (lambda: mkv_nested(b"\x67\xc8", 2000, False), ANY, 60),
    "mkv, 100,000 unknown lengths": (lambda: mkv_nested(b"\x1f\x43\xb6\x75", 100_000, True), ANY, 60),
    "mkv, 100,000 groups of unknown length": (lambda: mkv_nested(b"\xa0", 100_000, True), ANY, 60),
    "mkv, 400,000 cues": (lambda: mkv_cues(400_000), ANY, 130),
    "mkv, 300,000 tracks": (lambda: mkv_tracks(300_000), ANY, 130),
    "mkv, attachment of 15 MB": (lambda: mkv_attachment(15 * MIB), ANY, 90),
    "mkv, attachment of 100 MB": (lambda: mkv_attachment(100 * MIB), ANY, 90),
    "mkv, 60,000 chapters": (lambda: mkv_chapters(60_000), ANY, 130),
    "mkv, 1 million empty elements": (lambda: in_segment(b"\xec\x80" * 5_000_000), ANY, 60),
    "avi, index of 900,000 entries": (lambda: avi_index(900_000), ANY, 130),
    "avi, index of 4 million entries": (lambda: avi_index(4_000_000), ANY, 130),
    "avi, 300,000 tags": (lambda: avi_tags(300_000), ANY, 130),
    "avi, 10,000 streams": (lambda: avi_streams(10_000), ANY, 130),
    "avi, 1 million chunks": (lambda: in_avi(chunk(b"JUNK", b"") * 1_000_000, b"movi"), ANY, 60),
}  # fmt: skip
"""Name: how the file is made, the statuses that may answer it, and the MB that decoding it may take."""
