"""Converted frames: upright, with square pixels and true colours."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from foveate.gateway.media.color_primaries import coded_profile
from foveate.gateway.media.color_profile import conversion_to_srgb
from foveate.gateway.media.video import Clip, decode_clip, upright_frames
from foveate.gateway.media.video_demuxer import ClipLimits
from tests.support.video_samples import SIZE, clip, number_of, numbered

LIMITS = ClipLimits()


def decode(source: bytes, frames: int) -> Clip:
    return decode_clip(source, frames, 120, lambda size: [(0, 0, *size)], "bilinear", LIMITS)


def numbers(result: Clip) -> list[int]:
    return [number_of(pixels) for pixels in result.pixels[0]]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_rotated_clip_becomes_upright(degrees: int, flipped: bool) -> None:
    data = clip(count=4, rotation=(degrees, flipped))
    stored = numbered(3)
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if flipped else upright
    height, width = upright.shape[:2]
    result = decode_clip(data, 2, 96, lambda _: [(0, 0, width, height / 2)], "bilinear", LIMITS)
    assert result.size == (width, height)
    expected = Image.fromarray(np.ascontiguousarray(upright))
    cut = expected.resize((96, 96), Image.Resampling.BILINEAR, (0, 0, width, height / 2))
    # The samples of four frames are number 1 and number 3.
    assert abs(result.pixels[0, 1].astype(int) - np.asarray(cut)).mean() < 3
    _, second = upright_frames(data, 2, LIMITS)
    assert abs(np.asarray(second).astype(int) - np.asarray(expected)).mean() < 3


def test_a_portrait_clip_of_a_phone_is_rotated_clockwise() -> None:
    data = clip(count=1)
    at = data.index(b"tkhd") + 4 + 4 + 36
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, SIZE[1] << 16, 0, 1 << 30)
    result = next(upright_frames(data[:at] + matrix + data[at + 36 :], 1, LIMITS))
    expected = np.rot90(numbered(0), -1)
    assert abs(np.asarray(result).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("ratio", [Fraction(4, 3), Fraction(1, 2)])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("rotation", [None, (90, False)])
def test_non_square_pixels_are_stretched_to_square_ones(
    container: str, ratio: Fraction, rotation: tuple[int, bool] | None
) -> None:
    data = clip(container=container, count=3, ratio=ratio, rotation=rotation if container == "mp4" else None)
    wide = round(SIZE[0] * ratio), SIZE[1]
    expected = wide[::-1] if rotation and container == "mp4" else wide
    assert decode(data, 1).size == expected
    assert next(upright_frames(data, 1, LIMITS)).size == expected


@pytest.mark.parametrize("size", [(322, 194), (98, 310), (1280, 722)])
def test_any_even_frame_size(size: tuple[int, int]) -> None:
    result = decode(clip(count=9, size=size), 3)
    assert result.size == size
    assert numbers(result) == [1, 4, 7]


def test_odd_frame_sizes() -> None:
    result = decode(clip("libvpx", "webm", 9, size=(321, 193)), 3)
    assert result.size == (321, 193)
    assert numbers(result) == [1, 4, 7]


@pytest.mark.parametrize(
    ("size", "matrix"), [((160, 96), 5), ((1280, 720), 1), ((160, 96), 1), ((160, 96), 9)]
)
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_preserved(size: tuple[int, int], matrix: int, full: bool) -> None:
    """In limited and full range. The matrix is in the file, or follows from the size."""
    tagged = full or matrix == 9 or (matrix == 1) != (size[1] >= 720)
    colour = (200, 60, 30)
    flat = np.full((size[1], size[0], 3), colour, np.uint8)
    data = clip(
        count=1, size=size, draw=lambda _: flat, matrix=matrix, full=full, tagged=tagged, options={"qp": "2"}
    )
    assert abs(decode(data, 1).pixels.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(("primaries", "transfer"), [(9, 14), (12, 13), (9, 16), (9, 18)])
def test_wide_gamuts_and_hdr_are_converted_to_srgb(container: str, primaries: int, transfer: int) -> None:
    """Crops and whole frames, as a still image with the same colours is."""
    colour = (150, 90, 80)
    flat = np.full((96, 160, 3), colour, np.uint8)
    data = clip(
        count=2, container=container, size=(160, 96), draw=lambda _: flat, matrix=9, tagged=True,
        primaries=primaries, transfer=transfer, options={"qp": "2"},
    )  # fmt: skip
    still = conversion_to_srgb(coded_profile(primaries, transfer), "RGB")
    assert still is not None
    expected = np.asarray(still.apply(Image.fromarray(flat)), np.int64)[0, 0]
    assert abs(expected - colour).max() > 8
    assert abs(decode(data, 1).pixels.astype(int) - expected).max() <= 6
    assert abs(np.asarray(next(upright_frames(data, 1, LIMITS))).astype(int) - expected).max() <= 6


@pytest.mark.parametrize("primaries", [1, 2, 5, 6, 7])
def test_usual_primaries_are_kept(primaries: int) -> None:
    colour = (200, 60, 30)
    flat = np.full((96, 160, 3), colour, np.uint8)
    data = clip(
        count=1, size=(160, 96), draw=lambda _: flat, tagged=True, primaries=primaries, options={"qp": "2"}
    )
    assert abs(decode(data, 1).pixels.astype(int) - colour).max() <= 4
