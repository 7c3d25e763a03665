"""Video decoding: which frames are sampled, from every container and codec."""

from concurrent.futures import ThreadPoolExecutor
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
from tests.support.video_samples import FRAGMENTED, SIZE, clip, number_of, spliced

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
def sample(kind: str) -> bytes:
    return clip(**KINDS[kind])


def whole_frame(size: Size) -> list[FrameBox]:
    return [(0, 0, *size)]


def decode(source: bytes | Path, frames: int, side: int = 120, limits: ClipLimits = LIMITS) -> Clip:
    result = decode_clip(source, frames, side, whole_frame, "bilinear", limits)
    assert result.pixels.shape == (1, frames, side, side, 3)
    assert result.pixels.dtype == np.uint8
    assert len(result.at_s) == frames
    return result


def numbers(result: Clip) -> list[int]:
    return [number_of(pixels) for pixels in result.pixels[0]]


@pytest.mark.parametrize("frames", [1, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_the_frames_in_the_middle_of_equal_parts(kind: str, frames: int) -> None:
    result = decode(sample(kind), frames)
    times = KINDS[kind].get("times_ms") or [40 * n for n in range(60)]
    # MP4 adds up the durations of frames in the order in which they are stored.
    assert abs(result.duration_s - times[-1] / 1000) < 1
    sample_times_ms = [1000 * result.duration_s * (2 * n + 1) / (2 * frames) for n in range(frames)]
    expected = [max(n for n, time in enumerate(times) if time <= at) for at in sample_times_ms]
    assert numbers(result) == expected
    assert [round(1000 * at) for at in result.at_s] == [times[n] for n in expected]


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_short_clip_repeats_frames(container: str, count: int) -> None:
    result = decode(clip(container=container, count=count), 7)
    assert numbers(result) == [(2 * n + 1) * count // 14 for n in range(7)]
    assert result.decoded == count


def test_a_file_decodes_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(sample("mp4"))
    assert (decode(path, 6).pixels == decode(sample("mp4"), 6).pixels).all()


def test_a_change_of_the_frame_size_is_decoded() -> None:
    first, second = (clip("libvpx", "webm", 20, size=size) for size in [SIZE, (SIZE[0] * 2, SIZE[1] * 2)])
    result = decode(spliced(first, second), 8)
    assert numbers(result) == [2, 7, 12, 17, 2, 7, 12, 17]
    assert result.size == SIZE
    with pytest.raises(ClipTooLarge):
        decode(spliced(first, second), 8, limits=ClipLimits(max_pixels=SIZE[0] * SIZE[1]))


def test_frames_that_the_model_does_not_use_are_not_decoded() -> None:
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


def test_each_box_is_cropped_from_each_frame() -> None:
    data = clip("mjpeg", "avi", 8, options={"qscale": "2"})
    boxes: list[FrameBox] = [(0, 0, 100, 100), (10.5, 20.25, 300, 150), (0, 0, *SIZE)]
    result = decode_clip(data, 4, 64, lambda _: boxes, "bicubic", LIMITS)
    assert result.pixels.shape == (3, 4, 64, 64, 3)
    for number, frame in enumerate(upright_frames(data, 4, LIMITS)):
        for index, box in enumerate(boxes):
            expected = np.asarray(frame.resize((64, 64), Image.Resampling.BICUBIC, box))
            assert (result.pixels[index, number] == expected).all()


def test_many_threads_decode_the_same_as_one() -> None:
    kinds = list(KINDS)[:12]
    alone = {kind: decode(sample(kind), 4).pixels for kind in kinds}
    with ThreadPoolExecutor(6) as pool:
        together = pool.map(lambda kind: (kind, decode(sample(kind), 4).pixels), kinds * 4)
        assert all((pixels == alone[kind]).all() for kind, pixels in together)
