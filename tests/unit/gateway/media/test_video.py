"""Clips: which frames are sampled, how few are decoded for it, and how they look."""

import struct
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import ClipTooLarge
from foveate.gateway.media.frame_transform import FrameBox
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.video import Clip, decode_clip, upright_frames
from foveate.gateway.media.video_demuxer import ClipLimits
from tests.support.video_samples import FRAGMENTED, SIZE, clip, number_of, numbered, spliced

LIMITS = ClipLimits()
LONG = {"gop": 250, "options": {"bf": "3", "b_strategy": "0"}}
UNEVEN_MS = [40 * n if n < 30 else 1200 + 400 * (n - 30) for n in range(60)]

KINDS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mp4 with b-frames in one group": LONG,
    "mp4 with its header first": {"muxing": {"movflags": "faststart"}},
    "mp4 in fragments": {"muxing": FRAGMENTED},
    "mp4 in fragments, live": {"muxing": FRAGMENTED, "live": True},
    "mp4 in fragments with an index": {"muxing": {"movflags": FRAGMENTED["movflags"] + "+global_sidx"}},
    "mp4 hevc": {"codec": "libx265"},
    "mp4 mpeg4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mov mjpeg": {"codec": "mjpeg", "container": "mov"},
    "mkv h264": {"container": "matroska"},
    "mkv h264, live": {"container": "matroska", "live": True},
    "webm vp8": {"codec": "libvpx", "container": "webm"},
    "webm vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "webm vp9, live": {"codec": "libvpx-vp9", "container": "webm", "live": True},
    "webm av1": {"codec": "libsvtav1", "container": "webm", "options": {"preset": "11"}},
    "avi mpeg4": {"codec": "mpeg4", "container": "avi"},
    "avi mpeg4 with b-frames": {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}},
    "avi h264 with b-frames": {"container": "avi", **LONG, "gop": 12},
    "avi mjpeg": {"codec": "mjpeg", "container": "avi"},
    "mp4 of uneven rate": {"times_ms": UNEVEN_MS},
    "mkv of uneven rate": {"times_ms": UNEVEN_MS, "container": "matroska"},
    "webm of uneven rate": {"times_ms": UNEVEN_MS, "container": "webm", "codec": "libvpx"},
}


@cache
def made(kind: str) -> bytes:
    return clip(**KINDS[kind])


def whole(size: Size) -> list[FrameBox]:
    return [(0, 0, *size)]


def decode(source: bytes | Path, frames: int, side: int = 120, limits: ClipLimits = LIMITS) -> Clip:
    found = decode_clip(source, frames, side, whole, "bilinear", limits)
    assert found.pixels.shape == (1, frames, side, side, 3)
    assert found.pixels.dtype == np.uint8
    assert len(found.at_s) == frames
    return found


def numbers(found: Clip) -> list[int]:
    return [number_of(pixels) for pixels in found.pixels[0]]


# Which frames


@pytest.mark.parametrize("frames", [1, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_shown_in_the_middle_of_equal_spans(kind: str, frames: int) -> None:
    found = decode(made(kind), frames)
    times = KINDS[kind].get("times_ms") or [40 * n for n in range(60)]
    # MP4 adds up how long frames last in the order in which they are stored.
    assert abs(found.duration_s - times[-1] / 1000) < 1
    wanted = [1000 * found.duration_s * (2 * n + 1) / (2 * frames) for n in range(frames)]
    expected = [max(n for n, time in enumerate(times) if time <= at) for at in wanted]
    assert numbers(found) == expected
    assert [round(1000 * at) for at in found.at_s] == [times[n] for n in expected]


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_short_clip_repeats_frames(container: str, count: int) -> None:
    found = decode(clip(container=container, count=count), 7)
    assert numbers(found) == [(2 * n + 1) * count // 14 for n in range(7)]
    assert found.decoded == count


def test_a_file_does_as_well_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(made("mp4"))
    assert (decode(path, 6).pixels == decode(made("mp4"), 6).pixels).all()


def test_frames_that_change_size_midway_are_all_read() -> None:
    first, second = (clip("libvpx", "webm", 20, size=size) for size in [SIZE, (SIZE[0] * 2, SIZE[1] * 2)])
    found = decode(spliced(first, second), 8)
    assert numbers(found) == [2, 7, 12, 17, 2, 7, 12, 17]
    assert found.size == SIZE
    with pytest.raises(ClipTooLarge):
        decode(spliced(first, second), 8, limits=ClipLimits(max_pixels=SIZE[0] * SIZE[1]))


# How few are decoded


def test_a_long_clip_is_decoded_in_places_only() -> None:
    data = clip(count=1500, gop=50, size=(80, 48), options={"bf": "2"})
    found = decode(data, 8)
    assert numbers(found) == [(2 * n + 1) * 1500 // 16 % 240 for n in range(8)]
    assert found.decoded < 8 * 50


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_a_live_recording_is_decoded_in_places_too(container: str) -> None:
    data = clip(
        container=container,
        count=600,
        gop=25,
        size=(80, 48),
        live=True,
        muxing=FRAGMENTED if container == "mp4" else {},
    )
    assert decode(data, 4).decoded < 4 * 30


def test_frames_on_which_none_builds_are_skipped() -> None:
    plain = clip(count=120, gop=250, options={"bf": "0"})
    leaves = clip(count=120, gop=250, options={"bf": "3", "b_strategy": "0", "b-pyramid": "none"})
    assert decode(plain, 1).decoded >= 60
    assert decode(leaves, 1).decoded < 30


@pytest.mark.parametrize("kind", ["avi mjpeg", "mov mjpeg"])
def test_where_each_frame_stands_alone_no_other_is_decoded(kind: str) -> None:
    assert decode(made(kind), 9).decoded == 9


# How they look


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_clip_stands_upright(degrees: int, mirrored: bool) -> None:
    data = clip(count=4, turn=(degrees, mirrored))
    stored = numbered(3)
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    height, width = upright.shape[:2]
    found = decode_clip(data, 2, 96, lambda _: [(0, 0, width, height / 2)], "bilinear", LIMITS)
    assert found.size == (width, height)
    expected = Image.fromarray(np.ascontiguousarray(upright))
    cut = expected.resize((96, 96), Image.Resampling.BILINEAR, (0, 0, width, height / 2))
    # Of four frames the ones before the middle of each half: number 1 and number 3.
    assert abs(found.pixels[0, 1].astype(int) - np.asarray(cut)).mean() < 3
    _, second = upright_frames(data, 2, LIMITS)
    assert abs(np.asarray(second).astype(int) - np.asarray(expected)).mean() < 3


def test_a_phone_held_upright_turns_its_clips_clockwise() -> None:
    data = clip(count=1)
    at = data.index(b"tkhd") + 4 + 4 + 36
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, SIZE[1] << 16, 0, 1 << 30)
    found = next(upright_frames(data[:at] + matrix + data[at + 36 :], 1, LIMITS))
    expected = np.rot90(numbered(0), -1)
    assert abs(np.asarray(found).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("ratio", [Fraction(4, 3), Fraction(1, 2)])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("turn", [None, (90, False)])
def test_pixels_that_are_not_square_are_shown_as_they_should(
    container: str, ratio: Fraction, turn: tuple[int, bool] | None
) -> None:
    data = clip(container=container, count=3, ratio=ratio, turn=turn if container == "mp4" else None)
    wide = round(SIZE[0] * ratio), SIZE[1]
    expected = wide[::-1] if turn and container == "mp4" else wide
    assert decode(data, 1).size == expected
    assert next(upright_frames(data, 1, LIMITS)).size == expected


@pytest.mark.parametrize("size", [(322, 194), (98, 310), (1280, 722)])
def test_any_even_size_will_do(size: tuple[int, int]) -> None:
    found = decode(clip(count=9, size=size), 3)
    assert found.size == size
    assert numbers(found) == [1, 4, 7]


def test_odd_sizes_too() -> None:
    found = decode(clip("libvpx", "webm", 9, size=(321, 193)), 3)
    assert found.size == (321, 193)
    assert numbers(found) == [1, 4, 7]


def test_frames_that_nobody_looks_at_are_not_decoded() -> None:
    data = clip("mjpeg", "avi", 40)
    every, some = (
        decode_clip(data, 16, 64, lambda _: [(0, 0, *SIZE)], "bilinear", LIMITS, only)
        for only in (None, [2, 6, 10, 14])
    )
    assert (every.decoded, some.decoded) == (16, 4)
    assert some.pixels.shape == every.pixels.shape
    for number in range(16):
        if number in (2, 6, 10, 14):
            assert (some.pixels[:, number] == every.pixels[:, number]).all()
            assert some.at_s[number] == every.at_s[number]
        else:
            assert not some.pixels[:, number].any()
            assert abs(some.at_s[number] - every.at_s[number]) < 0.1


def test_each_box_is_cut_out_of_each_frame() -> None:
    data = clip("mjpeg", "avi", 8, options={"qscale": "2"})
    boxes: list[FrameBox] = [(0, 0, 100, 100), (10.5, 20.25, 300, 150), (0, 0, *SIZE)]
    found = decode_clip(data, 4, 64, lambda _: boxes, "bicubic", LIMITS)
    assert found.pixels.shape == (3, 4, 64, 64, 3)
    for number, frame in enumerate(upright_frames(data, 4, LIMITS)):
        for window, box in enumerate(boxes):
            expected = np.asarray(frame.resize((64, 64), Image.Resampling.BICUBIC, box))
            assert (found.pixels[window, number] == expected).all()


@pytest.mark.parametrize(("size", "matrix"), [((160, 96), 5), ((1280, 720), 1), ((160, 96), 1)])
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_that_went_in(size: tuple[int, int], matrix: int, full: bool) -> None:
    """BT.601 and BT.709, narrow and full range, told by the file, or by its size where it says nothing."""
    told = full or (matrix == 1) != (size[1] >= 720)
    colour = (200, 60, 30)
    flat = np.full((size[1], size[0], 3), colour, np.uint8)
    data = clip(
        count=1, size=size, draw=lambda _: flat, matrix=matrix, full=full, told=told, options={"qp": "2"}
    )
    assert abs(decode(data, 1).pixels.astype(int) - colour).max() <= 4


def test_many_threads_read_clips_at_once() -> None:
    kinds = list(KINDS)[:12]
    alone = {kind: decode(made(kind), 4).pixels for kind in kinds}
    with ThreadPoolExecutor(6) as pool:
        together = pool.map(lambda kind: (kind, decode(made(kind), 4).pixels), kinds * 4)
        assert all((pixels == alone[kind]).all() for kind, pixels in together)
