"""Large pictures decode in a lane of their own, so that they do not delay the small ones behind them."""

from typing import Literal

from foveate.gateway.media.image import sniff, webp_canvas

LARGE_PIXELS = 4_000_000
"""Past this, formats that always decode in full take a tenth of a second and more."""
_FIELDS: dict[str, tuple[slice, slice, Literal["big", "little"]]] = {
    "image/png": (slice(16, 20), slice(20, 24), "big"),
    "image/gif": (slice(6, 8), slice(8, 10), "little"),
    "image/bmp": (slice(18, 22), slice(22, 26), "little"),
}
"""Where a header keeps width and height."""


def is_large(data: bytes) -> bool:
    """Whether a picture will take long to decode, from its first bytes. Costs microseconds.

    JPEGs never do, whatever their size: they are decoded at a fraction of it. What hides its size
    deeper in the file, as TIFF does, counts as large.
    """
    kind = sniff(data[:1024])
    if kind == "image/webp":
        width, height = webp_canvas(data)
        return width * height > LARGE_PIXELS
    if kind not in _FIELDS:
        return kind == "image/tiff"
    across, down, order = _FIELDS[kind]
    return int.from_bytes(data[across], order) * int.from_bytes(data[down], order) > LARGE_PIXELS
