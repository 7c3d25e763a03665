"""Read from an image's header whether it is large: large images decode on a thread of their own."""

from typing import Literal

from foveate.gateway.media.image_format import sniff, webp_size

LARGE_PIXELS = 4_000_000
"""Larger images take a tenth of a second or more in formats that always decode in full."""
BYTES_PER_PIXEL = 10
"""Memory at the peak: a transparent image and its copy on white, at 4 bytes each, and a mask."""
_SIZE_FIELDS: dict[str, tuple[slice, slice, Literal["big", "little"]]] = {
    "image/png": (slice(16, 20), slice(20, 24), "big"),
    "image/gif": (slice(6, 8), slice(8, 10), "little"),
    "image/bmp": (slice(18, 22), slice(22, 26), "little"),
}
"""Positions of width and height in the header, and their byte order."""


def is_large(data: bytes) -> bool:
    """Whether an image will take long to decode, from its first bytes. Costs microseconds.

    A JPEG never counts as large: it is decoded at a fraction of its size. A TIFF always does, because its
    size may be anywhere in the file.
    """
    kind = sniff(data[:1024])
    return kind == "image/tiff" or (header_pixels(data, kind) or 0) > LARGE_PIXELS


def header_pixels(data: bytes, kind: str | None) -> int | None:
    """Width times height in the header of an image of this kind; None for JPEG, TIFF and other kinds."""
    if kind == "image/webp":
        width, height = webp_size(data)
        return width * height
    if kind not in _SIZE_FIELDS:
        return None
    width_at, height_at, order = _SIZE_FIELDS[kind]
    return int.from_bytes(data[width_at], order) * int.from_bytes(data[height_at], order)


def decoded_bytes(data: bytes, max_pixels: int) -> int:
    """Memory that decoding a large image takes, about; 0 for others. At most that of `max_pixels` pixels."""
    kind = sniff(data[:1024])
    pixels = max_pixels if kind == "image/tiff" else header_pixels(data, kind) or 0
    return working_bytes(min(pixels, max_pixels))


def working_bytes(pixels: int) -> int:
    """Memory that decoding, or drawing on, an image of so many pixels takes; 0 unless it is large."""
    return BYTES_PER_PIXEL * pixels if pixels > LARGE_PIXELS else 0
