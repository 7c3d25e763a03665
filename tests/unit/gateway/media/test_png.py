"""The colours of PNG files without a profile, and profiles that Pillow refuses."""

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import BrokenMedia
from foveate.core.model import InputSpec
from foveate.gateway.media.color_primaries import SRGB_PRIMARIES, WIDE_PRIMARIES, coded_profile
from foveate.gateway.media.image import decode_image
from tests.support.media_samples import encode, flat, png_chunk

COLOUR = (180, 70, 50)
PLAIN = encode(flat("RGB", COLOUR), "PNG")
P3 = WIDE_PRIMARIES[12]


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG of one colour with these chunks after its header."""
    return PLAIN[:33] + b"".join(chunks) + PLAIN[33:]


def decode(data: bytes) -> NDArray[np.int64]:
    pixels = decode_image(data, InputSpec(0.875), 16, 10**6).astype(np.int64)
    assert np.ptp(pixels, (0, 1)).max() <= 1
    return np.asarray(pixels[5, 5])


def gamma(value: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chromaticities(values: tuple[float, ...]) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def coded(primaries: int, transfer: int) -> bytes:
    return png_chunk(b"cICP", bytes((primaries, transfer, 0, 1)))


SRGB_CHUNK = png_chunk(b"sRGB", b"\0")
BY_PROFILE = decode(encode(flat("RGB", COLOUR), "PNG", icc_profile=coded_profile(12, 13)))


def test_numbers_and_a_profile_of_display_p3_agree() -> None:
    assert abs(BY_PROFILE - COLOUR).max() > 8
    assert abs(decode(with_chunks(coded(12, 13))) - BY_PROFILE).max() <= 1
    assert abs(decode(with_chunks(gamma(0.45455), chromaticities(P3))) - BY_PROFILE).max() <= 2


@pytest.mark.parametrize(
    "chunks",
    [
        [SRGB_CHUNK],
        [SRGB_CHUNK, gamma(1.0), chromaticities(P3)],
        [gamma(0.45455)],
        [gamma(0.45455), chromaticities(SRGB_PRIMARIES)],
        [chromaticities(P3)],
        [coded(1, 13)],
        [coded(2, 2)],
        [gamma(0.0), chromaticities(P3)],
        [gamma(0.45455), chromaticities((0.0,) * 8)],
        [gamma(0.45455), chromaticities((0.3, 0.3) * 4)],
        [png_chunk(b"cICP", b"")],
        [png_chunk(b"cICP", b"\x09")],
    ],
)
def test_srgb_and_values_without_sense_change_nothing(chunks: list[bytes]) -> None:
    assert (decode(with_chunks(*chunks)) == COLOUR).all()


def test_the_code_takes_precedence() -> None:
    assert (decode(with_chunks(coded(1, 13), gamma(1.0))) == COLOUR).all()
    assert abs(decode(with_chunks(SRGB_CHUNK, coded(12, 13))) - BY_PROFILE).max() <= 1


def test_linear_light_is_coded() -> None:
    data = encode(flat("L", 55), "PNG")
    assert abs(decode(data[:33] + gamma(1.0) + data[33:]) - 128).max() <= 2


@pytest.mark.parametrize("profile", [bytes(3 * 2**20), b"x" * 2**21])
def test_a_profile_of_over_a_megabyte_is_ignored(profile: bytes) -> None:
    assert (decode(encode(flat("RGB", COLOUR), "PNG", icc_profile=profile)) == COLOUR).all()


def test_a_profile_in_an_unknown_compression_is_ignored() -> None:
    assert (decode(with_chunks(png_chunk(b"iCCP", b"a\0\7xyz"))) == COLOUR).all()
    assert (decode(with_chunks(png_chunk(b"iCCP", b"a\0\0xyz"))) == COLOUR).all()


def test_a_palette_is_converted_too() -> None:
    image = Image.new("P", (48, 48), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    assert abs(decode(encode(image, "PNG", icc_profile=coded_profile(12, 13))) - BY_PROFILE).max() <= 1


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_long_compressed_texts_do_not_matter(name: bytes, after_pixels: bool) -> None:
    """Drawing programs and image generators keep their source in one. Pillow refuses more than 1 MB."""
    head = b"mxfile\0\0" if name == b"zTXt" else b"mxfile\0\1\0\0\0"
    text = png_chunk(name, head + zlib.compress(b"ab" * 10**6))
    data = PLAIN[:-12] + text + PLAIN[-12:] if after_pixels else with_chunks(text)
    assert tuple(decode(data)) == COLOUR


def test_texts_of_a_truncated_file_hide_no_damage() -> None:
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"ab"))
    with pytest.raises(BrokenMedia):
        decode(PLAIN[:33] + text[:-6])
