"""The colours of a PNG: its chunks cICP, iCCP, sRGB, gAMA and cHRM (W3C PNG, third edition, section 4.3)."""

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from foveate.gateway.media.color_primaries import coded_profile, gamma_profile

MAX_CHUNKS = 64
"""Chunks that are searched for colours. They precede the pixels, and most programs write them first."""
FIRST_CHUNK = 8
TEXT_CHUNKS = (b"zTXt", b"iTXt")
"""Chunks of text that may be compressed. Pillow refuses a file in which one expands to over 1 MB."""
MAX_SEARCHED_CHUNKS = 10_000
"""Chunks that are searched for texts; a file of more of them keeps the rest."""
CICP_BYTES = 16
"""Length of a whole chunk cICP: four bytes of content between its header and its checksum."""


def open_png(file: BytesIO) -> PngImageFile:
    """Open a PNG with Pillow. A profile that Pillow refuses, such as one of over 1 MB, is left out.

    Raises the errors of Pillow.
    """
    try:
        return PngImageFile(file)
    except (ValueError, SyntaxError):
        data = file.getvalue()
        span = next(((at, end) for name, at, end in _chunks(data) if name == b"iCCP"), None)
        if span is None:
            raise
    return PngImageFile(type(file)(data[: span[0]] + data[span[1] :]))


def without_texts(data: bytes) -> bytes:
    """The file without compressed texts, such as the drawing or the workflow that an image was made from."""
    if not any(name in data for name in TEXT_CHUNKS):
        return data
    view, kept, start, at = memoryview(data), list[memoryview](), 0, FIRST_CHUNK
    for _ in range(MAX_SEARCHED_CHUNKS):
        if at + 12 > len(data):
            break
        (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        end = at + 12 + length
        if name in TEXT_CHUNKS:
            kept.append(view[start:at])
            start = end
        at = end
    return b"".join((*kept, view[start:]))


def png_profile(image: ImageFile, data: bytes) -> tuple[bytes | None, str]:
    """The colour profile of a PNG, and the mode of pixels that it is for.

    Its own profile, or one of RGB that is made from its other chunks, for grey images too; None for sRGB.
    """
    for name, at, end in _chunks(data):
        if name == b"cICP" and end - at == CICP_BYTES:
            primaries, transfer = data[at + 8 : at + 10]
            return coded_profile(primaries, transfer), "RGB"
    info = image.info
    if info.get("icc_profile"):
        return bytes(info["icc_profile"]), image.mode
    if "srgb" in info or "gamma" not in info:
        return None, "RGB"
    # cHRM without gAMA is ignored, as browsers do.
    return gamma_profile(info["gamma"], info.get("chromaticity")), "RGB"


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the first chunks, up to the pixels."""
    at = FIRST_CHUNK
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data) or data[at + 4 : at + 8] == b"IDAT":
            return
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], at, at + 12 + length
        at += 12 + length
