"""Media types and image sizes, read from the first bytes of a file. Nothing is decoded."""

import re

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from foveate.core.errors import BrokenMedia, UnsupportedMedia

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
    "video/mp2t": rb"(?:.{4})?\x47.{187}(?:.{4})?\x47.{187}(?:.{4})?\x47",
    "video/mpeg": rb"\0\0\x01[\xba\xb3]",
    "video/x-flv": rb"FLV\x01",
    "video/x-ms-asf": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "video/h264": rb"\0{2,3}\x01[\x09\x27\x47\x67]",
    "video/x-ivf": rb"DKIF",
    "video/x-yuv4mpeg": rb"YUV4MPEG2 ",
    "video/vnd.rn-realvideo": rb"\.RMF",
    "application/mxf": rb"\x06\x0e\x2b\x34",
    "application/ogg": rb"OggS",
    "audio/wav": rb"RIFF....WAVE",
    "audio/flac": rb"fLaC",
    "audio/aiff": rb"FORM....AIF[FC]",
    "audio/amr": rb"#!AMR",
    "audio/aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    "audio/mpeg": rb"ID3[\x02-\x04]|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]",
    "image/x-jpeg2000-codestream": rb"\xff\x4f\xff\x51",
    "image/x-exr": rb"\x76\x2f\x31\x01",
    "image/vnd.radiance": rb"#\?R(?:ADIANCE|GBE)",
    "image/x-portable-anymap": rb"P[1-7]\s",
    "image/x-icns": rb"icns",
    "image/x-dds": rb"DDS ",
    "image/qoi": rb"qoif",
    "application/pdf": rb"%PDF-",
    "application/postscript": rb"%!PS",
    "application/zip": rb"PK\x03\x04",
}
"""Regular expressions for the first bytes of each known media type. The first match wins."""
NAMES = {
    "video/mp2t": "MPEG-TS",
    "video/mpeg": "MPEG-PS",
    "video/x-flv": "FLV",
    "video/x-ms-asf": "Windows Media (WMV)",
    "video/vnd.rn-realvideo": "RealVideo",
    "application/ogg": "Ogg",
    "application/mxf": "MXF",
    "audio/mpeg": "MP3",
}
"""Formats that are known by another name than their media type."""
IMAGE_FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
CLIP_FORMATS = "MP4, MOV, WebM, Matroska or AVI"


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
    return next(hints, "the data is not an image or a clip in a known format")


def is_supported_image(head: bytes) -> bool:
    """Whether a file with these first bytes is an image of a supported format."""
    kind = sniff(head)
    return kind == "image/jpeg" or kind in READERS


def image_type(head: bytes) -> str:
    """The media type of an image of a supported format, from its first bytes.

    Raises UnsupportedMedia for another known format, and BrokenMedia for unknown bytes.
    """
    kind = sniff(head)
    if kind is None:
        raise BrokenMedia(describe_unknown(head))
    if not is_supported_image(head):
        raise unsupported(kind)
    return kind


def unsupported(kind: str) -> UnsupportedMedia:
    """The error for a media type that is known and not supported. It says which formats are."""
    formats = IMAGE_FORMATS if kind.startswith(("image/", "application/p")) else CLIP_FORMATS
    if kind.startswith(("audio/", "application/zip")):
        formats = "an image or a clip"
    return UnsupportedMedia(f"{NAMES.get(kind, kind)} is not supported; send {formats}")


def webp_size(data: bytes) -> Size:
    """Width and height of the canvas in a WebP header (RFC 9649, section 2)."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
