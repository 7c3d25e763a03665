"""Colour profiles of images: the same picture in another colour space gives the same pixels."""

import io
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from foveate.core.model import InputSpec
from foveate.gateway.media.color_primaries import coded_profile, gamma_profile
from foveate.gateway.media.color_profile import MAX_PROFILE, ConversionCache, conversion_to_srgb
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.image_tiles import decode_tiles, decode_whole
from tests.support.color_profiles import cmyk_profile, grey_profile
from tests.support.media_samples import encode, exif, flat, scene

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DISPLAY_P3 = coded_profile(12, 13) or b""
SPEC = InputSpec(0.875)


def picture(size: tuple[int, int] = (203, 151)) -> Image.Image:
    """Colours that every gamut has."""
    return Image.fromarray(np.asarray(scene(*size)) // 2 + 60)


def to_profile(image: Image.Image, profile: bytes, mode: str) -> Image.Image:
    """The image in the colour space of a profile."""
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), outputMode=mode
    )
    assert converted is not None
    converted.info.clear()
    return converted


def decode(data: bytes, size: int = 64) -> NDArray[np.int64]:
    return decode_image(data, SPEC, size, 50_000_000).astype(np.int64)


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("JPEG", {"quality": 98, "subsampling": 0}),
    ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True, "exif": exif(6)}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_display_p3_gives_the_colours_of_srgb(kind: str, options: dict[str, Any]) -> None:
    image = picture()
    wide = to_profile(image, DISPLAY_P3, "RGB")
    plain = decode(encode(image, kind, **options))
    assert abs(decode(encode(wide, kind, icc_profile=DISPLAY_P3, **options)) - plain).mean() < 1
    assert abs(decode(encode(wide, kind, **options)) - plain).mean() > 3, "without the profile they differ"


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_a_profile_of_srgb_changes_nothing(kind: str, options: dict[str, Any]) -> None:
    image = picture()
    tagged = decode(encode(image, kind, icc_profile=SRGB, **options))
    assert (tagged == decode(encode(image, kind, **options))).all()
    assert conversion_to_srgb(SRGB, "RGB") is None


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 98}), ("TIFF", {})])
def test_inks_are_converted_through_their_profile(kind: str, options: dict[str, Any]) -> None:
    profile = cmyk_profile()
    image = picture()
    inks = to_profile(image, profile, "CMYK")
    plain = decode(encode(image, "PNG"))
    assert abs(decode(encode(inks, kind, icc_profile=profile, **options)) - plain).mean() < 4
    assert abs(decode(encode(inks, kind, **options)) - plain).mean() > 8, "without the profile they differ"


def test_ycck_is_converted_as_cmyk_is() -> None:
    profile = cmyk_profile()
    data = bytearray(encode(flat("CMYK", (60, 120, 20, 30)), "JPEG", icc_profile=profile, quality=98))
    at = data.index(b"Adobe")
    samples = np.array(Image.open(io.BytesIO(bytes(data))))[0, 0]
    data[at + 11] = 2  # the same samples, read as YCCK
    other = np.array(Image.open(io.BytesIO(bytes(data))))[0, 0]
    assert abs(samples.astype(int) - other).max() > 20
    expected = conversion_to_srgb(profile, "CMYK")
    assert expected is not None
    reference = expected.apply(Image.new("CMYK", (1, 1), tuple(int(value) for value in other))).getpixel(
        (0, 0)
    )
    assert abs(decode(bytes(data)) - np.array(reference)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_is_converted_through_its_profile(kind: str, mode: str) -> None:
    if kind == "JPEG" and mode == "LA":
        mode = "L"
    data = encode(flat(mode, (55, 255) if mode == "LA" else 55), kind, icc_profile=grey_profile(1.0))
    assert abs(decode(data) - 128).max() <= 2, "55 of 255 in linear light"


def test_transparency_stays() -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    wide = to_profile(picture(), DISPLAY_P3, "RGB").convert("RGBA")
    wide.putalpha(image.getchannel("A"))
    difference = decode(encode(wide, "PNG", icc_profile=DISPLAY_P3)) - decode(encode(image, "PNG"))
    assert abs(difference).mean() < 1


def test_tiles_and_whole_images_are_converted_too() -> None:
    image = picture((900, 300))
    data = encode(to_profile(image, DISPLAY_P3, "RGB"), "PNG", icc_profile=DISPLAY_P3)
    whole = np.asarray(decode_whole(data, 10**6)).astype(int)
    assert abs(whole - np.asarray(image)).mean() < 1
    parts = decode_tiles(data, SPEC, 64, 10**6), decode_tiles(encode(image, "PNG"), SPEC, 64, 10**6)
    for tile, plain in zip(parts[0].pixels, parts[1].pixels, strict=True):
        assert abs(tile.astype(int) - plain).mean() < 1


def test_converting_after_the_resize_is_close_to_converting_before() -> None:
    image = scene(1600, 1200)
    wide = encode(image, "PNG", icc_profile=DISPLAY_P3)
    before = encode(decode_whole(wide, 10**7), "PNG")
    difference = abs(decode(wide, 224) - decode(before, 224))
    assert difference.mean() < 0.4
    assert np.quantile(difference, 0.99) <= 4


@pytest.mark.parametrize(
    "profile",
    [
        b"x" * 10, b"x" * 500, SRGB[:200], SRGB[:128] + b"\xff" * 400, DISPLAY_P3[:2000],
        DISPLAY_P3.ljust(MAX_PROFILE + 1, b"\0"), SRGB[:16] + b"CMYK" + SRGB[20:],
        SRGB[:12] + b"link" + SRGB[16:], DISPLAY_P3[:16] + b"GRAY" + DISPLAY_P3[20:],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_damaged_or_unfit_profile_is_ignored(profile: bytes, kind: str) -> None:
    image = picture()
    assert (decode(encode(image, kind, icc_profile=profile)) == decode(encode(image, kind))).all()


def test_any_damage_of_a_profile_is_survived() -> None:
    generator = random.Random(4)
    for profile, mode in ((DISPLAY_P3[:4000], "RGB"), (cmyk_profile(), "CMYK"), (grey_profile(2.0), "L")):
        for _ in range(100):
            damaged = bytearray(profile)
            for _ in range(generator.choice((1, 4, 30))):
                damaged[generator.randrange(min(len(damaged), 400))] = generator.randrange(256)
            damaged[36:40] = b"acsp"
            conversion = conversion_to_srgb(bytes(damaged), mode)
            if conversion:
                assert conversion.apply(Image.new(mode, (2, 2))).mode == "RGB"


def test_the_cache_keeps_the_profiles_used_last() -> None:
    cache = ConversionCache(size=2)
    profiles = [gamma_profile(gamma, None) or b"" for gamma in (0.6, 0.7, 0.8)]
    first = cache.get(profiles[0])
    assert first is not None
    cache.get(profiles[1])
    assert cache.get(profiles[0]) is first
    cache.get(profiles[2])
    assert cache.get(profiles[0]) is first


def test_many_threads_convert_the_same_as_one() -> None:
    image = picture((800, 600))
    data = encode(to_profile(image, DISPLAY_P3, "RGB"), "PNG", icc_profile=DISPLAY_P3)
    expected = decode(data)
    with ThreadPoolExecutor(4) as pool:
        assert all((pixels == expected).all() for pixels in pool.map(decode, [data] * 12))


def test_a_profile_with_huge_claims_is_ignored() -> None:
    claimed = SRGB[:128] + struct.pack(">I", 2**32 - 1) + SRGB[132:]
    assert conversion_to_srgb(claimed, "RGB") is None
