"""Image files that are made to cost memory or time before anything is decoded, each in a few lines."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from foveate.gateway.media.color_primaries import SRGB_PRIMARIES, rgb_profile
from tests.support.color_profiles import cmyk_profile
from tests.support.media_samples import encode, flat, png, png_chunk, scene, tiff, tiff_entries

MIB = 2**20
SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE = 3, 4, 5, 7, 12
CODES = ((0x00, b"\0"), (0x10, b"\xe0"))
GREY_TIFF = {256: (LONG, 64), 257: (LONG, 64), 258: (SHORT, 8), 262: (SHORT, 1), 278: (LONG, 64)}
"""Size, bits, colour and rows in a strip of a grey TIFF."""


def tiff_strips(count: int, compression: int = 1, rows: int = 1) -> bytes:
    """A grey TIFF that lists this many strips, all at the same place."""
    offsets = struct.pack("<I", 8) * count
    tags = [(tag, kind, 1, value) for tag, (kind, value) in (GREY_TIFF | {259: (SHORT, compression)}).items()]
    tags = [entry for entry in tags if entry[0] != 278]
    tags += [(273, LONG, count, 4104), (279, LONG, count, 4104), (278, LONG, 1, rows), (277, SHORT, 1, 1)]
    return tiff_entries(tags, bytes(4096) + offsets)


def tiff_values(tag: int, kind: int, width: int, size: int = 16 * MIB) -> bytes:
    """A valid grey TIFF with `size` bytes of values under one more tag."""
    tags = [(name, form, 1, value) for name, (form, value) in GREY_TIFF.items()]
    tags += [(273, LONG, 1, 8), (279, LONG, 1, 4096), (tag, kind, size // width, 8 + 4096)]
    return tiff_entries(tags, bytes(4096) + b"\1" * size)


def tiff_tags(count: int) -> bytes:
    """A valid grey TIFF with this many private tags."""
    tags = [(name, form, 1, value) for name, (form, value) in GREY_TIFF.items()]
    tags += [(273, LONG, 1, 8), (279, LONG, 1, 4096)]
    used = {entry[0] for entry in tags}
    tags += [(tag, LONG, 1, 1) for tag in range(1000, 65536) if tag not in used][:count]
    return tiff_entries(tags, bytes(4096))


def tiff_loop() -> bytes:
    """A TIFF whose directory is its own next one, its EXIF directory and its sub-directory."""
    at = 8 + 4096
    return tiff(
        GREY_TIFF | {273: (LONG, 8), 279: (LONG, 4096), 330: (LONG, at), 34665: (LONG, at)}, bytes(4096)
    )[:-4] + struct.pack("<I", at)


def big_tiff(entries: int) -> bytes:
    """A BigTIFF that claims this many entries."""
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, entries) + bytes(20) * 1000


def png_chunks(name: bytes, body: bytes, count: int) -> bytes:
    """A PNG with this many equal chunks before its pixels."""
    return png(16, 16, png_chunk(name, body) * count)


def png_after(name: bytes, body: bytes, count: int) -> bytes:
    """A PNG with this many equal chunks after its pixels."""
    data = encode(flat("L", 0), "PNG")
    return data[:-12] + png_chunk(name, body) * count + data[-12:]


def png_pieces(count: int) -> bytes:
    """A PNG whose pixels come after this many empty IDAT chunks."""
    data = encode(flat("L", 0), "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + png_chunk(b"IDAT", b"") * count + data[at:]


def png_text(chunk: bytes, count: int, size: int) -> bytes:
    """A PNG with compressed texts of this size each."""
    text = zlib.compress(bytes(size), 9)
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[chunk]
    return png(16, 16, *[png_chunk(chunk, head + text)] * count)


def jpeg_segments(marker: int, body: bytes, count: int) -> bytes:
    """A JPEG with this many equal segments before its tables."""
    data = encode(scene(64, 64), "JPEG")
    return data[:2] + (bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body) * count + data[2:]


def jpeg_scans(side: int, scans: int) -> bytes:
    """A black progressive JPEG of side x side pixels in this many valid scans of a few bytes each."""
    blocks = (side + 7) // 8
    tables = b"\xff\xdb\0\x43\0" + b"\1" * 64  # the Huffman codes: 0 is "no difference", 0 is a run of blocks
    tables += b"".join(b"\xff\xc4\0\x14" + bytes((kind, 1)) + bytes(15) + symbol for kind, symbol in CODES)
    frame = b"\xff\xc2\0\x11\x08" + struct.pack(">HH", side, side) + b"\3\1\x11\0\2\x11\0\3\x11\0"
    first = b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\0\0" + bytes(3 * blocks * blocks // 8 + 1)
    run = "0" + "1" * 14  # 32,767 blocks without any coefficient
    bits = run * -(-blocks * blocks // 32767)
    data = (
        int(bits + "1" * (-len(bits) % 8), 2)
        .to_bytes((len(bits) + 7) // 8, "big")
        .replace(b"\xff", b"\xff\0")
    )
    more = []
    for low in range(13, -1, -1):
        for component in (1, 2, 3):
            high = 0 if low == 13 else low + 1
            for start, end in ((1, 31), (32, 63)):
                head = bytes((1, component, 0, start, end, high << 4 | low))
                more.append(b"\xff\xda\0\x08" + head + data)
    return b"\xff\xd8" + tables + frame + first + b"".join(more[: scans - 1]) + b"\xff\xd9"


def gif_blocks(label: int, body: bytes, count: int) -> bytes:
    """A GIF with an extension of this many sub-blocks before its image."""
    data = encode(flat("P", 0), "GIF")
    at = data.index(b",\0\0\0\0")
    return data[:at] + b"!" + bytes((label,)) + (bytes((len(body),)) + body) * count + b"\0" + data[at:]


def gif_extensions(label: int, body: bytes, count: int) -> bytes:
    """A GIF with this many extensions before its image."""
    data = encode(flat("P", 0), "GIF")
    at = data.index(b",\0\0\0\0")
    one = b"!" + bytes((label, len(body))) + body + b"\0"
    return data[:at] + one * count + data[at:]


def gif_pieces(count: int) -> bytes:
    """A GIF whose pixels come after this many empty images."""
    data = encode(flat("P", 0), "GIF")
    at = data.index(b",\0\0\0\0")
    return data[:at] + (b",\0\0\0\0\1\0\1\0\0\2\0") * count + data[at:]


def webp_chunks(name: bytes, body: bytes, count: int) -> bytes:
    """An extended WebP with this many more chunks."""
    inside = encode(flat("RGB", 0), "WEBP", lossless=True)[12:]
    head = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (47).to_bytes(3, "little") * 2
    more = (name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)) * count
    inside = b"WEBP" + head + more + inside
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def webp_frames(count: int) -> bytes:
    """An animated WebP of this many frames."""
    data = encode(flat("RGB", 9, (16, 16)), "WEBP", save_all=True, append_images=[flat("RGB", 99, (16, 16))])
    at = data.rindex(b"ANMF")
    inside = data[8:] + data[at:] * count
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def bmp(header_size: int = 40, width: int = 48, height: int = 48, colours: int = 0, bits: int = 8) -> bytes:
    """A BMP with these values in its header, and 16 MiB behind it."""
    head = struct.pack("<IiiHHIIiiII", header_size, width, height, 1, bits, 0, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 4 * 256) + head + bytes(16 * MIB)


def icc(tags: int, size: int) -> bytes:
    """An ICC profile that claims this many tags, of this many bytes."""
    head = struct.pack(">I", size) + b"lcms\x04\x30\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(88)
    table = b"".join(b"A%03d" % (n % 1000) + struct.pack(">II", 132, 12) for n in range(min(tags, 100_000)))
    return (head[:128] + struct.pack(">I", tags) + table).ljust(size, b"\1")


def long_profile(values: int) -> bytes | None:
    """A valid profile with this many values in each of its three curves."""
    return rgb_profile(SRGB_PRIMARIES, np.linspace(0, 1, values))


IMAGES: dict[str, tuple[Callable[[], bytes], int, int]] = {
    "tiff, 4 million strips": (lambda: tiff_strips(4_000_000), 413, 40),
    "tiff, 4 million strips, deflate": (lambda: tiff_strips(4_000_000, 8), 413, 40),
    "tiff, 8 million bits per sample": (lambda: tiff_values(258 + 80, SHORT, 2), 413, 40),
    "tiff, 2 million resolutions": (lambda: tiff_values(282, RATIONAL, 8), 413, 40),
    "tiff, 16 MB profile": (lambda: tiff_values(34675, UNDEFINED, 1), 200, 60),
    "tiff, 16 MB photoshop": (lambda: tiff_values(34377, UNDEFINED, 1), 200, 60),
    "tiff, 2 million doubles": (lambda: tiff_values(33550, DOUBLE, 8), 413, 40),
    "tiff, 60,000 tags": (lambda: tiff_tags(60_000), 413, 40),
    "tiff, loop of directories": (tiff_loop, 200, 10),
    "big tiff, 2^60 entries": (lambda: big_tiff(2**60), 413, 10),
    "big tiff, 1,000 entries": (lambda: big_tiff(1000), 413, 10),
    "png, 400,000 chunks": (lambda: png_chunks(b"tEXt", b"a\0b", 400_000), 422, 60),
    "png, 400,000 unknown chunks": (lambda: png_chunks(b"abCd", b"", 400_000), 422, 60),
    "png, 40,000 texts": (lambda: png_chunks(b"tEXt", b"a\0b", 40_000), 200, 60),
    "png, 1 million empty IDAT": (lambda: png_pieces(1_000_000), 422, 60),
    "png, chunks after the pixels": (lambda: png_after(b"tEXt", b"a\0b", 400_000), 422, 60),
    "png, animation control": (lambda: png_after(b"fcTL", bytes(26), 200_000), 422, 60),
    "png, compressed texts": (lambda: png_text(b"zTXt", 100, 900_000), 200, 30),
    "png, international texts": (lambda: png_text(b"iTXt", 100, 900_000), 200, 30),
    "png, profile of 128 MB": (lambda: png_text(b"iCCP", 1, 2**27), 200, 30),
    "png, 60 profiles": (lambda: png_text(b"iCCP", 60, 900_000), 200, 30),
    "png, 16 MB exif": (lambda: png_chunks(b"eXIf", b"II*\0\x08\0\0\0" + bytes(16 * MIB), 1), 200, 60),
    "jpeg, 4 million comments": (lambda: jpeg_segments(0xFE, b"", 4_000_000), 200, 60),
    "jpeg, 250 profiles": (
        lambda: jpeg_segments(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65519), 250), 200, 60),
    "jpeg, 200,000 exif": (lambda: jpeg_segments(0xE1, b"Exif\0\0", 200_000), 200, 20),
    "jpeg, 100,000 tables": (lambda: jpeg_segments(0xDB, b"\0" + b"\1" * 64, 100_000), 200, 20),
    "jpeg, 5 scans of 49 Mpixel": (lambda: jpeg_scans(7000, 5), 200, 500),
    "jpeg, 85 scans of 49 Mpixel": (lambda: jpeg_scans(7000, 85), 200, 500),
    "gif, comment of 16 MB": (lambda: gif_blocks(254, b"a" * 255, 65_000), 200, 90),
    "gif, comment of 2 million blocks": (lambda: gif_blocks(254, b"a", 2_000_000), 422, 90),
    "gif, 200,000 comments": (lambda: gif_extensions(254, b"a", 200_000), 422, 60),
    "gif, 2 million extensions": (lambda: gif_extensions(1, b"a", 2_000_000), 422, 60),
    "gif, 200,000 images": (lambda: gif_pieces(200_000), 200, 30),
    "webp, 1 million chunks": (lambda: webp_chunks(b"abcd", b"", 1_000_000), 200, 90),
    "webp, 16 MB profile": (lambda: webp_chunks(b"ICCP", bytes(16 * MIB), 1), 200, 90),
    "webp, 100,000 frames": (lambda: webp_frames(100_000), 200, 90),
    "bmp, header of 16 MB": (lambda: bmp(header_size=16 * MIB), 422, 60),
    "bmp, 4 billion colours": (lambda: bmp(colours=2**32 - 1), 422, 60),
    "bmp, negative size": (lambda: bmp(width=-48), 413, 30),
    "icc, table of 3.6 MB": (
        lambda: encode(flat("CMYK", 0), "JPEG", icc_profile=cmyk_profile(27)), 200, 60),
    "icc, curves of 2 million values": (
        lambda: encode(flat("RGB", 0), "JPEG", icc_profile=long_profile(690_000)), 200, 60),
    "icc, 16 MB in a png": (
        lambda: encode(Image.new("RGB", (48, 48)), "PNG", icc_profile=icc(9, 16 * MIB)), 200, 60),
    "icc, 100,000 tags": (
        lambda: encode(Image.new("RGB", (48, 48)), "PNG", icc_profile=icc(100_000, 1_300_000)), 200, 60),
    "icc, 4 billion tags": (
        lambda: encode(Image.new("RGB", (48, 48)), "JPEG", icc_profile=icc(2**32 - 1, 60_000)), 200, 60),
}  # fmt: skip
"""Name: how the file is made, the status of its answer, and the MB that decoding it may take."""
