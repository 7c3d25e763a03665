"""Read from an image's header whether it is large: large images decode on a thread of their own."""

from typing import Literal

from foveate.gateway.media.image_format import sniff, webp_size

LARGE_PIXELS = 4_000_000
"""Larger images take a tenth of a second or more in formats that always decode in full."""
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
    if kind == "image/webp":
        width, height = webp_size(data)
        return width * height > LARGE_PIXELS
    if kind not in _SIZE_FIELDS:
        return kind == "image/tiff"
    width_at, height_at, order = _SIZE_FIELDS[kind]
    return int.from_bytes(data[width_at], order) * int.from_bytes(data[height_at], order) > LARGE_PIXELS
