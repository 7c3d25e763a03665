"""Masks for responses: encoded as PNG, and blended over the image where the client asked for that."""

from collections.abc import Sequence

from PIL import Image

from foveate.gateway.media.image_tiles import decode_whole
from foveate.gateway.media.masks import ClassArea, Mask, RenderedMask, overlay, png


def render_mask(
    size: tuple[int, int],
    mask: Mask | Image.Image,
    class_areas: Sequence[ClassArea],
    data: bytes,
    overlay_format: str | None,
    max_pixels: int,
) -> RenderedMask:
    """The mask as PNG, with the overlay if there is one. Runs on a pool thread: it touches every pixel.

    size: width and height of the upright image. data: the encoded image. overlay_format: the image format of
    the overlay; None makes none. max_pixels: the limit of decoding the image again for the overlay.
    """
    blended = None
    if overlay_format is not None:
        blended = overlay(decode_whole(data, max_pixels), mask, overlay_format)
    return RenderedMask(size, png(mask), blended, list(class_areas))
