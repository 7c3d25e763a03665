"""Untrusted bytes in, the model's input pixels out."""

import base64
import binascii
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from foveate.core.errors import BadRequest, BrokenMedia, FoveateError, ImageTooLarge, UnsupportedMedia
from foveate.core.model import InputSpec

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height, as Pillow orders them."""

# Opened by class, never by Image.open: nothing outside this table is tried, and its bomb check only warns.
# AVIF is absent: libavif allocates what the AV1 stream says, whatever size the container's header claims.
# So are TIFF's fax codecs below: libtiff prints a line to stderr for every damaged row.
READERS: dict[str, type[ImageFile]] = {
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/bmp": BmpImageFile,
    "image/tiff": TiffImageFile,
}
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
TIFF_CODECS = re.compile("raw|packbits|jpeg|tiff_(lzw|deflate|adobe_deflate)")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WIDE = 4
"""Pictures of 16 and 32 bits go through float32: they may have this many times fewer pixels."""
SHRINK_MARGIN = 2
"""A JPEG is decoded to at least this many times what the resize needs. See docs/benchmarks/decode.md."""


class Pieces(BytesIO):
    """A file that may be read in so many pieces only: a picture of millions of empty chunks, each of
    them a Python object to the decoder, is made to be slow."""

    left = 200_000

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError("the file is in too many pieces")
        return super().read(size)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture that still lies as its file stores it."""

    image: Image.Image
    """Mode L, RGB or RGBA."""
    size: Size
    """What the header says; `image` is smaller by `shrink`."""
    shrink: int = 1
    orientation: int = 1
    """EXIF's, 1 to 8."""

    @property
    def turned(self) -> bool:
        """It lies on its side."""
        return self.orientation >= 5

    @property
    def upright(self) -> Size:
        return self.size[::-1] if self.turned else self.size

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether it is mirrored left to right and upside down, once it has been turned."""
        return self.orientation in (2, 3, 6, 7), self.orientation in (3, 4, 7, 8)


def decode_image(data: bytes, spec: InputSpec, size: int, max_pixels: int) -> Pixels:
    """The (size, size, 3) RGB pixels a model is fed, resized and cropped as timm and torchvision evaluate.

    Transparency lies on white. Of several frames the first is taken. Colour profiles are not applied.
    Safe to call from many threads. Raises UnsupportedMedia for a format that is not read, ImageTooLarge past
    `max_pixels` (width x height, from the header), and BrokenMedia for anything else that does not decode.
    """
    picture = decoded(data, lambda whole: _scaled(whole, spec, size), max_pixels)
    return _fit(picture, spec, size)


def decoded(data: bytes, scaled: Callable[[Size], Size], max_pixels: int) -> Picture:
    """`scaled`: what the whole picture would measure when resized, by its size."""
    kind = sniff(data)
    if kind is None:
        raise BrokenMedia("the bytes are not a picture in a known format" if data else "the picture is empty")
    if kind != "image/jpeg" and kind not in READERS:
        raise UnsupportedMedia(f"{kind} is not read here; send JPEG, PNG, WebP, GIF, BMP or TIFF")
    with _decoder_boundary(kind):
        jpeg = kind == "image/jpeg"
        return _read_jpeg(data, scaled, max_pixels) if jpeg else _read(data, kind, max_pixels)


def sniff(data: bytes) -> str | None:
    """The media type the first bytes show, whether or not it is read here; None where they show none."""
    return next((kind for kind, sign in SIGNATURES.items() if re.match(sign, data, re.DOTALL)), None)


def decode_base64(text: str | bytes) -> bytes:
    """The bytes behind base64 in either alphabet, padded or not, or behind a `data:...;base64,` URL.

    Raises BadRequest for anything else.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    raw = re.sub(rb"^\s*data:[^,]{0,256};base64,", b"", raw, count=1, flags=re.IGNORECASE)
    raw = raw.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f\v").rstrip(b"=")
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except binascii.Error as error:
        raise BadRequest("the data is not valid base64") from error


def silence_decoder_warnings() -> None:
    """Keep Pillow's warnings about damaged metadata out of the log. The entry point calls this once.

    Their text holds numbers from the file and Python remembers every text shown, so hostile files would fill
    the log and memory. Suppressing them around each call is not thread-safe.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _decoder_boundary(kind: str) -> Iterator[None]:
    # The one broad except outside the process boundaries: on hostile files decoders raise OSError,
    # SyntaxError, ValueError, struct.error, zlib.error, MemoryError and more; it is always the file's fault.
    try:
        yield
    except FoveateError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge("the picture has more pixels than are read here") from error
    except Exception as error:
        raise BrokenMedia(f"the {kind} data is truncated or damaged") from error


def _check_pixels(size: Size, max_pixels: int) -> None:
    # Never past Pillow's own threshold, where it starts to warn.
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if size[0] * size[1] > limit:
        raise ImageTooLarge(f"the picture is {size[0]} x {size[1]} pixels; at most {limit} pixels are read")


def _read_jpeg(data: bytes, scaled: Callable[[Size], Size], max_pixels: int) -> Picture:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    _check_pixels((width, height), max_pixels)
    # Each progressive scan is a pass over every pixel and may take a few bytes. The allowance per byte is
    # for chance: phones append whole videos, where the two bytes of the marker turn up once in 64 kB.
    if data.count(b"\xff\xda") > 100 + len(data) // 32768:
        raise BrokenMedia("the JPEG has more scans than are read here")
    wanted = scaled((width, height))
    room = min(width / wanted[0], height / wanted[1]) / SHRINK_MARGIN
    # Only powers of two: these are the inverse transforms with SIMD code.
    shrink = next((n for n in (8, 4, 2) if n <= room), 1)
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_width=-(-width // shrink), min_height=-(-height // shrink), strict=True
    )
    return Picture(Image.fromarray(pixels), (width, height), shrink, _orientation(_jpeg_exif(data)))


def _jpeg_exif(data: bytes) -> bytes:
    at = 2
    for _ in range(64):  # cameras put it first; a file of nothing but segments costs no more
        marker, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == b"\xff\xe1" and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + length]
        if marker[:1] != b"\xff" or marker == b"\xff\xda":
            break
        at += 1 if marker == b"\xff\xff" else 2 + length
    return b""


def _orientation(exif: bytes) -> int:
    """EXIF's orientation tag; 1 where it is absent or damaged, for which no picture is refused."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    first = int.from_bytes(tiff[4:8], order) + 2
    for at in range(first, min(first + 12 * 256, len(tiff)), 12):
        if int.from_bytes(tiff[at : at + 2], order) == 0x0112:
            value = int.from_bytes(tiff[at + 8 : at + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _read(data: bytes, kind: str, max_pixels: int) -> Picture:
    if kind == "image/webp":
        _check_pixels(webp_canvas(data), max_pixels)  # opening the file already allocates its canvas
    image = READERS[kind](Pieces(data))
    _check_pixels(image.size, max_pixels)
    _check_layout(image, max_pixels)
    image.load()
    # Pillow turns a TIFF by itself while it loads it.
    orientation = 1 if kind == "image/tiff" else _orientation(image.info.get("exif", b""))
    return Picture(_plain(image), image.size, orientation=orientation)


def webp_canvas(data: bytes) -> Size:
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_layout(image: ImageFile, max_pixels: int) -> None:
    """Refuse what a small header can hide: vast TIFF tiles, rare codecs, BMP runs decoded in Python."""
    if isinstance(image, TiffImageFile):
        tile = image.tag_v2.get(TILEWIDTH, 0), image.tag_v2.get(TILELENGTH, 0)
        _check_pixels(tile, max_pixels)
        if image.mode == "LAB" or not TIFF_CODECS.fullmatch(image.info["compression"]):
            raise UnsupportedMedia("this kind of TIFF is not read here; save it as RGB with LZW or Deflate")
    if image.mode[:1] in ("I", "F"):
        _check_pixels(image.size, max_pixels // WIDE)
    if isinstance(image, BmpImageFile) and image.info.get("compression") in (1, 2):
        raise UnsupportedMedia("run-length encoded BMP is not read here; save it as PNG")


def _plain(image: ImageFile) -> Image.Image:
    if image.mode[:1] in ("I", "F"):
        return Image.fromarray(_eight_bits(image))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _eight_bits(image: ImageFile) -> Pixels:
    """(height, width) grey of 8 bits from wider samples, scaled by the range that the format implies."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    full = top = float(values.max())
    if image.mode.startswith("I;16"):
        twelve = isinstance(image, TiffImageFile) and image.tag_v2.get(BITSPERSAMPLE) == (12,)
        full = 4095 if twelve else 65535
    elif top <= 65535:
        # Files of 32 bits declare no range: the usual ones come before the picture's own brightest value.
        full = 65535 if image.mode == "I" or top > 255 else 255 if top > 1 else 1
    return (values * (255 / full) + 0.5).clip(0, 255).astype(np.uint8)


def _scaled(size: Size, spec: InputSpec, crop: int) -> Size:
    """What the whole picture would measure when resized; no picture of that size is ever made."""
    side = max(crop, math.floor(crop / spec.crop_pct))
    if spec.crop_mode == "squash":
        return side, side
    width, height = size
    return (side, side * height // width) if width <= height else (side * width // height, side)


def _fit(picture: Picture, spec: InputSpec, size: int) -> Pixels:
    """Resize and crop in one pass, then turn what is left: cheaper than turning the whole picture first."""
    return resized(picture, view_of(picture.upright, spec, size, *picture.flips), size, spec)


def resized(picture: Picture, box: tuple[float, ...], size: int, spec: InputSpec) -> Pixels:
    """A box of the turned picture, in coordinates from before it was flipped, as (size, size, 3)."""
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if picture.turned else box
    shrink, (width, height) = picture.shrink, picture.image.size
    inside = left / shrink, top / shrink, min(right / shrink, width), min(bottom / shrink, height)
    pixels = np.asarray(on_white(picture.image.resize((size, size), FILTERS[spec.interpolation], inside)))
    pixels = pixels.transpose(1, 0, 2) if picture.turned else pixels
    mirrored, upended = picture.flips
    return np.array(pixels[:: -1 if upended else 1, :: -1 if mirrored else 1], order="C")


def view_of(
    size: Size, spec: InputSpec, crop: int, mirrored: bool = False, upended: bool = False
) -> tuple[float, float, float, float]:
    """The part of an upright picture the model sees, in coordinates from before it was flipped."""
    scaled = _scaled(size, spec, crop)
    edges: list[tuple[float, float]] = []
    for full, whole, flipped in zip(size, scaled, (mirrored, upended), strict=True):
        start = round((whole - crop) / 2)
        start = whole - crop - start if flipped else start
        edges.append((start * full / whole, (start + crop) * full / whole))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def on_white(image: Image.Image) -> Image.Image:
    # Under full transparency files keep whatever colours the editor left; people see the page behind it.
    if image.mode != "RGBA":
        return image.convert("RGB")
    page = Image.new("RGB", image.size, (255, 255, 255))
    page.paste(image, mask=image.getchannel("A"))
    return page
