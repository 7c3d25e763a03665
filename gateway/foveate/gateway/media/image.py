"""Decode untrusted image bytes to the pixels that a model takes as input."""

import base64
import binascii
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TILELENGTH, TILEWIDTH, TiffImageFile

from foveate.core.errors import BadRequest, BrokenMedia, FoveateError, ImageTooLarge, UnsupportedMedia
from foveate.core.model import InputSpec
from foveate.gateway.media.bounded_file import ReadLimitedFile
from foveate.gateway.media.color_profile import ColorConversion, conversion_to_srgb
from foveate.gateway.media.image_format import READERS, Size, image_type, webp_size
from foveate.gateway.media.jpeg import decode_pixels, read_header, read_metadata
from foveate.gateway.media.png import open_png, png_profile, without_texts
from foveate.gateway.media.tiff_directory import check_tiff_directory

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB pixels, or (H, W) grey ones."""

# TIFF's fax codecs are absent: libtiff prints a line to stderr for every damaged row.
TIFF_CODECS = re.compile("raw|packbits|jpeg|tiff_(lzw|deflate|adobe_deflate)")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WIDE_SAMPLE_COST = 4
"""Images with 16 or 32 bits a sample are converted through float32: the pixel limit is divided by this."""
STRIP_ROWS = 256
"""Rows of an image that are processed at one time where a copy of all of it would take much memory."""
SHRINK_MARGIN = 2
"""A JPEG is decoded to at least this many times the size of the resized image. See
docs/benchmarks/decode.md."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A decoded image in the orientation and with the colours in which its file stores it."""

    image: Image.Image
    """Mode L, RGB or RGBA; CMYK where `conversion` takes inks."""
    size: Size
    """Width and height in the file's header; `image` is smaller by the factor `shrink`."""
    shrink: int = 1
    orientation: int = 1
    """EXIF's orientation, 1 to 8."""
    conversion: ColorConversion | None = None
    """The conversion to sRGB that the file's colour profile asks for."""

    def in_srgb(self, image: Image.Image) -> Image.Image:
        """A part of this image in RGB, converted to sRGB, on a white page.

        The parts are resized first: that is up to a hundred times less to convert. At an edge between two
        colours the order makes a small difference.
        """
        return on_white(self.conversion.apply(image) if self.conversion else image)

    @property
    def transposed(self) -> bool:
        """Whether rows of the file are columns of the upright image."""
        return self.orientation >= 5

    @property
    def upright_size(self) -> Size:
        """Width and height of the upright image."""
        return self.size[::-1] if self.transposed else self.size

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether the image, after any transposition, is flipped left to right and top to bottom."""
        return self.orientation in (2, 3, 6, 7), self.orientation in (3, 4, 7, 8)


def decode_image(data: bytes, spec: InputSpec, size: int, max_pixels: int) -> Pixels:
    """The (size, size, 3) RGB pixels of a model's input, resized and cropped as timm and torchvision do it.

    Transparent areas become white. Of an animation, the first frame is taken. Colours are converted to sRGB
    through the file's profile. Safe to call from many threads. Raises UnsupportedMedia for a format that is
    not supported, ImageTooLarge for more than `max_pixels` (width x height, from the header), and BrokenMedia
    for any other data that does not decode.
    """
    image = decode_stored(data, lambda whole: _resized_size(whole, spec, size), max_pixels)
    # Resize and crop in one pass, then turn the small result: cheaper than turning the whole image first.
    return resize_box(image, crop_box(image.upright_size, spec, size, *image.flips), size, spec)


def decode_stored(data: bytes, resized_size: Callable[[Size], Size], max_pixels: int) -> StoredImage:
    """Decode an image without turning it. Raises the errors of `decode_image`.

    resized_size: gives the size that the whole image would have after the resize, from its size in the
    file. A JPEG is decoded at a fraction of its size where that is enough.
    """
    kind = image_type(data)
    with _decoder_boundary(kind):
        if kind == "image/jpeg":
            return _decode_jpeg(data, resized_size, max_pixels)
        return _decode_with_pillow(data, kind, max_pixels)


def decode_base64(text: str | bytes) -> bytes:
    """The bytes behind base64 in either alphabet, padded or not, or behind a `data:...;base64,` URL.

    Raises BadRequest for any other text.
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

    The warnings contain numbers from the file and Python remembers every text it has shown, so hostile files
    would fill the log and memory. Suppressing the warnings around each call is not thread-safe.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _decoder_boundary(kind: str) -> Iterator[None]:
    # A broad except outside the process boundaries: on hostile files decoders raise OSError, SyntaxError,
    # ValueError, struct.error, zlib.error, MemoryError and more. The cause is always the file.
    try:
        yield
    except FoveateError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            "the image has more pixels than the server decodes; send a smaller one"
        ) from error
    except Exception as error:
        raise BrokenMedia(f"the {kind} data is truncated or damaged") from error


def _check_pixels(size: Size, max_pixels: int) -> None:
    # Pillow warns above its own limit, so that limit applies too.
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if size[0] * size[1] > limit:
        raise ImageTooLarge(f"the image has {size[0]} x {size[1]} pixels; the server decodes at most {limit}")


def _decode_jpeg(data: bytes, resized_size: Callable[[Size], Size], max_pixels: int) -> StoredImage:
    (width, height), space, data = read_header(data)
    _check_pixels((width, height), max_pixels)
    # Each progressive scan is a pass over every pixel and may take only a few bytes. The limit grows with
    # the file because phones append whole videos, in which the marker's two bytes occur by chance once in
    # 64 kB.
    if data.count(b"\xff\xda") > 100 + len(data) // 32768:
        raise BrokenMedia("the JPEG has too many scans; save it again as a baseline JPEG")
    target = resized_size((width, height))
    factor = min(width / target[0], height / target[1]) / SHRINK_MARGIN
    # Powers of two only: these inverse transforms have SIMD code.
    shrink = next((n for n in (8, 4, 2) if n <= factor), 1)
    exif, profile = read_metadata(data)
    mode = {"Gray": "L", "CMYK": "CMYK", "YCCK": "CMYK"}.get(space, "RGB")
    conversion = conversion_to_srgb(profile, mode)
    # TurboJPEG converts inks to RGB without any profile.
    inks = conversion is not None and mode == "CMYK"
    pixels, _ = decode_pixels(data, "CMYK" if inks else "RGB", (-(-width // shrink), -(-height // shrink)))
    if inks:
        # The file stores inks inverted, as Adobe's programs do.
        image = Image.frombytes("CMYK", pixels.shape[1::-1], (255 - pixels).tobytes())
    else:
        image = Image.fromarray(pixels)
    return StoredImage(image, (width, height), shrink, _orientation(exif), conversion)


def _orientation(exif: bytes) -> int:
    """EXIF's orientation tag; 1 where it is absent or damaged, since an image is still usable without it."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    first = int.from_bytes(tiff[4:8], order) + 2
    for at in range(first, min(first + 12 * 256, len(tiff)), 12):
        if int.from_bytes(tiff[at : at + 2], order) == 0x0112:
            value = int.from_bytes(tiff[at + 8 : at + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _decode_with_pillow(data: bytes, kind: str, max_pixels: int) -> StoredImage:
    if kind == "image/webp":
        _check_pixels(webp_size(data), max_pixels)  # opening the file already allocates its canvas
    if kind == "image/tiff":
        check_tiff_directory(data)
    if kind == "image/png":
        data = without_texts(data)
    file = ReadLimitedFile(data)
    image = open_png(file) if kind == "image/png" else READERS[kind](file)
    _check_pixels(image.size, max_pixels)
    _check_layout(image, max_pixels)
    image.load()
    profile, mode = image.info.get("icc_profile"), image.mode
    if kind == "image/png":
        profile, mode = png_profile(image, data)
    conversion = conversion_to_srgb(profile, mode)
    # Pillow turns a TIFF itself when it loads it.
    orientation = 1 if kind == "image/tiff" else _orientation(image.info.get("exif", b""))
    keep = conversion is not None and image.mode == "CMYK"
    simple = image if keep else _simple_mode(image)
    return StoredImage(simple, image.size, orientation=orientation, conversion=conversion)


def _check_layout(image: ImageFile, max_pixels: int) -> None:
    """Refuse what a small header can hide: huge TIFF tiles, rare codecs, BMP runs decoded in Python."""
    if isinstance(image, TiffImageFile):
        tile = image.tag_v2.get(TILEWIDTH, 0), image.tag_v2.get(TILELENGTH, 0)
        _check_pixels(tile, max_pixels)
        if image.mode == "LAB" or not TIFF_CODECS.fullmatch(image.info["compression"]):
            raise UnsupportedMedia("this kind of TIFF is not supported; save it as RGB with LZW or Deflate")
    if image.mode[:1] in ("I", "F"):
        _check_pixels(image.size, max_pixels // WIDE_SAMPLE_COST)
    if isinstance(image, BmpImageFile) and image.info.get("compression") in (1, 2):
        raise UnsupportedMedia("run-length encoded BMP is not supported; save it as PNG")


def _simple_mode(image: ImageFile) -> Image.Image:
    """The image in mode L, RGB or RGBA."""
    if image.mode[:1] in ("I", "F"):
        return Image.fromarray(_eight_bits(image))
    if image.mode != "RGBA" and image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")


def _eight_bits(image: ImageFile) -> Pixels:
    """(height, width) grey of 8 bits from wider samples, scaled by the range that the format implies."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    white = brightest = float(values.max())
    if image.mode.startswith("I;16"):
        twelve_bits = isinstance(image, TiffImageFile) and image.tag_v2.get(BITSPERSAMPLE) == (12,)
        white = 4095 if twelve_bits else 65535
    elif brightest <= 65535:
        # Files of 32 bits declare no range: assume the usual ranges before the image's own brightest value.
        white = 65535 if image.mode == "I" or brightest > 255 else 255 if brightest > 1 else 1
    return (values * (255 / white) + 0.5).clip(0, 255).astype(np.uint8)


def _resized_size(size: Size, spec: InputSpec, crop: int) -> Size:
    """Width and height of the whole image after the resize. No image of that size is ever created."""
    side = max(crop, math.floor(crop / spec.crop_pct))
    if spec.crop_mode == "squash":
        return side, side
    width, height = size
    return (side, side * height // width) if width <= height else (side * width // height, side)


def resize_box(image: StoredImage, box: tuple[float, ...], size: int, spec: InputSpec) -> Pixels:
    """A box of the image as (size, size, 3) upright RGB pixels.

    box: left, top, right, bottom in pixels of the transposed image, before any flip.
    """
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if image.transposed else box
    shrink, (width, height) = image.shrink, image.image.size
    stored_box = left / shrink, top / shrink, min(right / shrink, width), min(bottom / shrink, height)
    source = image.image
    if source.mode == "RGBA":
        # Pillow would multiply all of the image by its transparency first, in a copy, for each box.
        source, stored_box = _crop_around(source, stored_box, size)
    resized = source.resize((size, size), FILTERS[spec.interpolation], stored_box)
    pixels = np.asarray(image.in_srgb(resized))
    pixels = pixels.transpose(1, 0, 2) if image.transposed else pixels
    flip_x, flip_y = image.flips
    return np.array(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1], order="C")


def _crop_around(
    image: Image.Image, box: tuple[float, ...], size: int
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A crop of the image that has all pixels which resizing the box reads, and the box in the crop."""
    left, top, right, bottom = box
    # A filter reads two pixels of the result on each side at most: FILTERS has no wider one.
    x, y = (2 * max(1.0, (end - start) / size) + 1 for start, end in ((left, right), (top, bottom)))
    x0, y0 = max(0, math.floor(left - x)), max(0, math.floor(top - y))
    x1, y1 = min(image.width, math.ceil(right + x)), min(image.height, math.ceil(bottom + y))
    return image.crop((x0, y0, x1, y1)), (left - x0, top - y0, right - x0, bottom - y0)


def crop_box(
    size: Size, spec: InputSpec, crop: int, flip_x: bool = False, flip_y: bool = False
) -> tuple[float, float, float, float]:
    """The part of an upright image that the model sees: left, top, right, bottom, before any flip."""
    edges: list[tuple[float, float]] = []
    for full, resized, flip in zip(size, _resized_size(size, spec, crop), (flip_x, flip_y), strict=True):
        start = round((resized - crop) / 2)
        start = resized - crop - start if flip else start
        edges.append((start * full / resized, (start + crop) * full / resized))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB, transparent areas white. An RGB image is returned as it is."""
    # Fully transparent pixels keep arbitrary colours from the editor; viewers show the page behind them.
    if image.mode == "RGB":
        return image
    if image.mode != "RGBA":
        return image.convert("RGB")
    page = Image.new("RGB", image.size, (255, 255, 255))
    for top in range(0, image.height, STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        page.paste(strip, (0, top), strip.getchannel("A"))
    return page
