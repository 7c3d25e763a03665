"""Media types and image sizes, read from the first bytes of a file. Nothing is decoded."""

import re

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Size = tuple[int, int]
"""Width and height in pixels, in Pillow's order."""

# Opened by class, never by Image.open: no format outside this table is tried, and Image.open's check for
# decompression bombs only warns. AVIF is absent because libavif allocates memory for the size in the AV1
# stream, whatever the container's header says.
READERS: dict[str, type[ImageFile]] = {
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/bmp": BmpImageFile,
    "image/tiff": TiffImageFile,
}
"""Pillow's reader of each supported media type. JPEG is absent: simplejpeg decodes it."""

SIGNATURES = {
    "image/jpeg": rb"\xff\xd8\xff",
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBP",
    "image/bmp": rb"BM",
    "image/tiff": rb"II[*+]\0|MM\0[*+]",
    "image/avif": rb"....ftyp(?:....){0,12}?avi[fs]",
    "image/heic": rb"....ftyp(?:....){0,12}?(?:hei[cx]|mif1|msf1)",
    "image/jxl": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "image/jp2": rb"\0\0\0\x0cjP  ",
    "image/vnd.adobe.photoshop": rb"8BPS",
    "image/x-icon": rb"\0\0\x01\0",
    "image/svg+xml": rb"(?:\xef\xbb\xbf)?\s*<(?:svg|(?:\?xml|!).{0,1000}?<svg)",
    "video/quicktime": rb"....ftypqt  ",
    "video/mp4": rb"....ftyp",
    "video/webm": rb"\x1a\x45\xdf\xa3.{0,60}webm",
    "application/pdf": rb"%PDF-",
    "application/postscript": rb"%!PS",
}
"""Regular expressions for the first bytes of each known media type. The first match wins."""


def sniff(data: bytes) -> str | None:
    """The media type that the first bytes show, supported or not; None for unknown bytes."""
    return next((kind for kind, sign in SIGNATURES.items() if re.match(sign, data, re.DOTALL)), None)


_NOT_MEDIA = {
    rb"\s*[{\[]": "the data is JSON; send it with content-type: application/json",
    rb"--[^\r\n]{1,256}\r\n.{0,1000}form-data": "the data is a multipart form; send it with the content-type"
    " multipart/form-data and its boundary",
    rb"data:|/9j/|iVBORw0KGgo|R0lGOD|UklGR|AAAA[\w+/]{2}Z0eX": "the data is base64 text; send the bytes"
    " themselves, or JSON with the text in 'data'",
    rb"\x1f\x8b": "the data is compressed with gzip; send it with content-encoding: gzip",
    rb"https?://": "the data is a URL; send the bytes themselves",
}
"""Regular expressions for the first bytes of what clients send in place of media, and what to do about it."""


def describe_unknown(data: bytes) -> str:
    """Why bytes that `sniff` does not know are no image."""
    if not data:
        return "the image is empty"
    head = data[:2048]
    hints = (hint for sign, hint in _NOT_MEDIA.items() if re.match(sign, head, re.DOTALL | re.IGNORECASE))
    return next(hints, "the data is not an image in a known format")


def webp_size(data: bytes) -> Size:
    """Width and height of the canvas in a WebP header (RFC 9649, section 2)."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
