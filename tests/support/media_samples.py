"""Images in every mode and format, and hostile files, for tests of image decoding."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 170, 40), (40, 40, 210), (255, 255, 255)
ORIENTATION = 0x0112
# The corner of the stored image that orientation 1..8 moves to the upper left: (row, column).
STORED_CORNER = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with smooth colours and a few hard edges, like a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(6):
        x, y, radius = random.random(3) * (width, height, min(width, height) / 4)
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file, written by Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, colour: Any, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, size, colour)


def exif(orientation: int) -> bytes:
    """An EXIF block with an orientation tag."""
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


def red_corner(orientation: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A blue image with one red quarter, which is the upper left one once the image is upright."""
    width, height = size
    row, column = STORED_CORNER[orientation]
    image = Image.new("RGB", size, BLUE)
    image.paste(
        RED, (column * width // 2, row * height // 2, (column + 1) * width // 2, (row + 1) * height // 2)
    )
    return image


def tiff(tags: dict[int, tuple[int, int]], strip: bytes) -> bytes:
    """A little-endian TIFF of one strip or tile. tags: type and value of each tag."""
    padded = strip + b"\0" * (len(strip) % 2)
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items())
    )
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(padded))
        + padded
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def tiff_entries(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of `data`, at offset 8, and one directory.

    entries: tag, type, number of values, and the value or the offset of the values.
    """
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    at = struct.pack("<I", 8 + len(data))
    return b"II*\0" + at + data + struct.pack("<H", len(entries)) + table + bytes(4)


def tiff_with_huge_tile(side: int) -> bytes:
    """A 10 x 10 TIFF whose single tile unpacks to side x side."""
    packed = zlib.compress(bytes(side * side))
    short, long = 3, 4
    tags = {
        256: (long, 10),
        257: (long, 10),
        258: (short, 8),
        259: (short, 8),
        262: (short, 1),
        277: (short, 1),
    }
    return tiff(
        tags | {322: (long, side), 323: (long, side), 324: (long, 8), 325: (long, len(packed))}, packed
    )


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A grey PNG that claims this size and contains one row. Extra chunks go before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1 + min(width, 4096))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


def patched_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header claims this size."""
    data = bytearray(encode(scene(64, 64), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP whose canvas claims this size."""
    frames = [flat("RGB", BLUE, (16, 16))]
    data = bytearray(encode(flat("RGB", RED, (16, 16)), "WEBP", save_all=True, append_images=frames))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def gif_frame(width: int, height: int) -> bytes:
    """A GIF of a small screen whose first frame claims this size."""
    data = bytearray(encode(flat("P", 1, (16, 16)), "GIF"))
    at = data.index(b",\0\0\0\0")
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_rle(width: int, height: int) -> bytes:
    """A run-length encoded BMP."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 62) + header + bytes(8) + b"\x10\x01\x00\x01"


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encode(scene(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def sixteen_bit(low: int, high: int) -> Image.Image:
    """A 16-bit grey ramp from left to right."""
    row: NDArray[np.uint16] = np.linspace(low, high, 64).astype(np.uint16)
    return Image.fromarray(np.tile(row, (64, 1)))
