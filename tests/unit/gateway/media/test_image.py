"""Image decoding: geometry, orientation, colour, formats, threads and base64."""

import base64
import io
import itertools
import math
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import BadRequest
from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_base64, decode_image, silence_decoder_warnings
from tests.support import media_samples as samples
from tests.support.media_samples import BLUE, GREEN, RED, WHITE, encode, flat, scene

CENTER, SQUASH = InputSpec(0.875), InputSpec(0.875, "squash", "bilinear")
MAX_PIXELS = 4_000_000
LOSSLESS = ["PNG", "BMP", "TIFF", "WEBP"]


def decode(
    data: bytes, spec: InputSpec = CENTER, size: int = 32, limit: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    pixels = decode_image(data, spec, size, limit)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


def reference(image: Image.Image, spec: InputSpec, size: int) -> NDArray[np.int64]:
    """Resize the whole image, then crop. The one-pass resize must give the same."""
    side, (width, height) = math.floor(size / spec.crop_pct), image.size
    shorter = min(width, height)
    scaled = (
        (side * width // shorter, side * height // shorter) if spec.crop_mode == "center" else (side, side)
    )
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    cut = image.resize(scaled, filters[spec.interpolation]).crop((left, top, left + size, top + size))
    return np.asarray(cut.convert("RGB")).astype(np.int64)


def is_colour(pixels: NDArray[np.uint8], colour: tuple[int, ...], tolerance: int = 12) -> bool:
    return bool((abs(pixels.astype(int) - colour) <= tolerance).all())


# Geometry


@pytest.mark.parametrize("spec", [CENTER, SQUASH, InputSpec(1.0), InputSpec(0.95, "squash")])
@pytest.mark.parametrize("size", [(320, 240), (240, 321), (333, 333), (40, 30), (500, 31)])
def test_decoding_equals_a_full_resize_and_a_crop(spec: InputSpec, size: tuple[int, int]) -> None:
    image = scene(*size)
    difference = abs(decode(encode(image, "PNG"), spec, 64) - reference(image, spec, 64))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


@pytest.mark.parametrize("spec", [CENTER, SQUASH])
@pytest.mark.parametrize("size", [(1920, 1080), (1201, 1603), (517, 2001), (64, 48)])
def test_scaled_jpeg_decoding_is_close_to_full_decoding(spec: InputSpec, size: tuple[int, int]) -> None:
    data = encode(scene(*size), "JPEG", quality=90)
    full = reference(Image.open(io.BytesIO(data)), spec, 96)
    difference = abs(decode(data, spec, 96) - full)
    assert difference.mean() < 0.6
    assert difference.max() < 40


@pytest.mark.parametrize("spec", [CENTER, SQUASH])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (20000, 2), (2, 20000), (1, 1), (16, 1)])
def test_extreme_shapes(size: tuple[int, int], kind: str, spec: InputSpec) -> None:
    data = encode(flat("RGB", GREEN, size), kind)
    tracemalloc.start()
    pixels = decode(data, spec, 224)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert is_colour(pixels, GREEN, 3)
    assert peak < 3_000_000


def test_the_crop_is_the_centre() -> None:
    image = flat("RGB", BLUE, (300, 100))
    image.paste(RED, (100, 0, 200, 100))
    assert is_colour(decode(encode(image, "PNG"), InputSpec(1.0), 50)[:, 1:-1], RED, 60)
    assert is_colour(decode(encode(image, "PNG"), InputSpec(1.0, "squash"), 60)[:, :18], BLUE, 2)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("side", [1, 20])
def test_orientation_brings_the_red_corner_up_left(kind: str, orientation: int, side: int) -> None:
    image = samples.red_corner(orientation, (96 * side, 64 * side))
    pixels = decode(encode(image, kind, exif=samples.exif(orientation)), SQUASH, 32)
    assert is_colour(pixels[2:12, 2:12], RED, 30)
    for quarter in (pixels[2:12, 20:30], pixels[20:30, 2:12], pixels[20:30, 20:30]):
        assert is_colour(quarter, BLUE, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_oriented_pixels_equal_those_of_the_upright_image(kind: str, orientation: int) -> None:
    image = scene(1203, 801)
    data = encode(image, kind, exif=samples.exif(orientation), **({"quality": 95} if kind == "JPEG" else {}))
    upright = Image.open(io.BytesIO(data)).convert("RGB")
    turns = [None, 0, 3, 1, 5, 4, 6, 2]
    turn = turns[orientation - 1]
    upright = upright if turn is None else upright.transpose(Image.Transpose(turn))
    # Pillow filters rows before columns, so a turned image rounds a little differently.
    tolerance = 0.5 if kind == "JPEG" else 0.06
    assert abs(decode(data, CENTER, 64) - reference(upright, CENTER, 64)).mean() < tolerance


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"M" * 60]
)
def test_damaged_exif_is_ignored(block: bytes) -> None:
    assert is_colour(decode(encode(flat("RGB", RED), "JPEG", exif=block)), RED, 4)


def test_orientation_outside_1_to_8_is_ignored() -> None:
    assert is_colour(
        decode(encode(samples.red_corner(1), "JPEG", exif=samples.exif(99)), SQUASH)[2:12, 2:12], RED, 30
    )


# Colour


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_agree(kind: str) -> None:
    image = scene(100, 80)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decode(encode(image, kind, **options)) == decode(encode(image, "PNG"))).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_modes_show_white_as_white_and_black_as_black(mode: str, kind: str) -> None:
    image = flat("L", 255)
    image.paste(0, (0, 0, 24, 48))
    pixels = decode(encode(image.convert(mode), kind), SQUASH)
    assert is_colour(pixels[:, :12], (0, 0, 0), 2)
    assert is_colour(pixels[:, 20:], WHITE, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_colours_become_white(mode: str) -> None:
    image = flat("RGBA", (*RED, 0))
    image.paste((*RED, 255), (0, 0, 24, 48))
    if mode == "PA":
        pixels = decode(encode(image.quantize(8), "PNG"), SQUASH)
    else:
        pixels = decode(encode(image.convert(mode), "PNG"), SQUASH)
    assert is_colour(pixels[:, 20:], WHITE, 2)
    assert not is_colour(pixels[:, :12], WHITE, 100)


def test_half_transparent_is_half_white() -> None:
    pixels = decode(encode(flat("RGBA", (0, 0, 0, 128)), "WEBP", lossless=True))
    assert is_colour(pixels, (127, 127, 127), 2)


@pytest.mark.parametrize(("mode", "colour", "clear"), [("RGB", RED, RED), ("L", 7, 7), ("1", 0, 0)])
def test_a_transparent_colour_of_a_png_is_white(mode: str, colour: Any, clear: Any) -> None:
    assert is_colour(decode(encode(flat(mode, colour), "PNG", transparency=clear)), WHITE, 0)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
@pytest.mark.parametrize("clear", [3, b"\xff\xff\xff\0"])
def test_a_transparent_palette_entry_is_white(kind: str, clear: int | bytes) -> None:
    image = flat("P", 3)
    image.putpalette([20, 30, 40] * 4)
    if kind == "PNG" or clear == 3:
        assert is_colour(decode(encode(image, kind, transparency=clear)), WHITE, 0)
    assert is_colour(decode(encode(image, kind)), (20, 30, 40), 0)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    assert is_colour(decode(encode(flat("RGB", RED).convert("CMYK"), kind)), RED, 6)


def test_ycck_jpeg() -> None:
    data = bytearray(encode(flat("RGB", (200, 200, 200)).convert("CMYK"), "JPEG", quality=95))
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data[at + 11] = 2  # the same samples read as YCC + K: Y = 200 and neutral only if chroma is 128
    pixels = decode(bytes(data))
    expected = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))[0, 0]
    assert is_colour(pixels, tuple(int(v) for v in expected), 4)


def test_grey_jpeg() -> None:
    assert is_colour(decode(encode(flat("L", 90), "JPEG")), (90, 90, 90), 2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    pixels = decode(encode(samples.sixteen_bit(0, 65535), kind), SQUASH, 64).astype(int)
    assert pixels[:, :3].max() < 40
    assert pixels[:, -3:].min() > 215
    assert abs(pixels[:, 32] - 129).max() < 4


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    assert decode(encode(samples.sixteen_bit(0, 2000), "PNG")).max() <= 8


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 3e9])
def test_float_tiff_is_scaled_by_its_likely_range(top: float) -> None:
    values = np.full((48, 48), top / 2, np.float32)
    values[:24] = top
    values[0, 0], values[1, 1] = np.nan, -1.0
    pixels = decode(encode(Image.fromarray(values), "TIFF"), SQUASH)
    assert is_colour(pixels[20:], (128, 128, 128), 2)
    assert is_colour(pixels[4:12, 8:], WHITE, 2)


def test_32_bit_integer_tiff() -> None:
    pixels = decode(encode(Image.fromarray(np.full((48, 48), 32768, np.int32)), "TIFF"))
    assert is_colour(pixels, (128, 128, 128), 1)


def test_12_bit_tiff() -> None:
    short, long, row = 3, 4, bytes.fromhex("800800") * 8
    tags = {
        256: (long, 16),
        257: (long, 16),
        258: (short, 12),
        259: (short, 1),
        262: (short, 1),
        273: (long, 8),
    }
    data = samples.tiff(tags | {277: (short, 1), 278: (long, 16), 279: (long, len(row) * 16)}, row * 16)
    assert is_colour(decode(data), (128, 128, 128), 1)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression: str) -> None:
    assert is_colour(decode(encode(flat("RGB", RED), "TIFF", compression=compression)), RED, 6)


# Containers


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    options = {"save_all": True, "append_images": [flat("RGB", BLUE), flat("RGB", GREEN)]}
    assert is_colour(decode(encode(flat("RGB", RED), kind, **options)), RED, 10)


@pytest.mark.parametrize("trailer", [b"\0" * 100, b"MPIMAGEDATA", encode(flat("RGB", BLUE), "JPEG")])
def test_jpeg_with_something_appended(trailer: bytes) -> None:
    assert is_colour(decode(encode(flat("RGB", RED), "JPEG") + trailer), RED, 4)


def test_a_motion_photo_is_accepted() -> None:
    video = np.random.default_rng(1).bytes(6_000_000)
    assert is_colour(decode(encode(flat("RGB", RED), "JPEG") + video), RED, 4)


def test_progressive_jpeg() -> None:
    image = scene(640, 480)
    plain, progressive = (decode(encode(image, "JPEG", quality=90, progressive=p)) for p in (False, True))
    assert (plain == progressive).all()


# Threads and warnings


def test_many_threads_decode_the_same_as_one() -> None:
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "TIFF"]
    files = [encode(scene(300 + 40 * n, 260, n), kind) for n, kind in itertools.product(range(4), kinds)]
    files += [encode(samples.red_corner(n, (900, 700)), "JPEG", exif=samples.exif(n)) for n in range(1, 9)]
    serial = [decode(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(decode, files * 3))
    for expected, pixels in zip(serial * 3, threaded, strict=True):
        assert (expected == pixels).all()


def test_warnings_of_damaged_metadata_can_be_silenced() -> None:
    data = bytearray(encode(flat("RGB", RED), "TIFF", tiffinfo={270: "x" * 40}))
    tag = data.index(b"\x0e\x01\x02\x00")
    data[tag + 4 : tag + 12] = b"\xff\xff\x00\x00\xf0\xff\x00\x00"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(bytes(data))
        assert caught, "this file no longer makes Pillow warn"
        caught.clear()
        silence_decoder_warnings()
        assert is_colour(decode(bytes(data)), RED, 2)
        assert not caught


# Base64


@pytest.mark.parametrize("raw", [b"", b"a", b"ab", b"\xfb\xff\xfe?>", bytes(range(256))])
def test_base64_in_all_its_forms(raw: bytes) -> None:
    plain = base64.b64encode(raw).decode()
    lines = "\r\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    forms: list[str | bytes] = [plain, plain.encode(), plain.rstrip("="), lines + "\n", f" {plain}\t"]
    forms += [base64.urlsafe_b64encode(raw), f"data:image/png;base64,{plain}", f"DATA:;BASE64,{lines}"]
    for text in forms:
        assert decode_base64(text) == raw


@pytest.mark.parametrize(
    "text",
    ["a", "!!!!", "Zm9v=Zm9v", "data:image/png,abcd", "Zm9vé", "\ud800", "data:;base64,*", b"\xff\xfe"],
)
def test_bad_base64(text: str | bytes) -> None:
    with pytest.raises(BadRequest) as refusal:
        decode_base64(text)
    assert refusal.value.status == 400
