"""Frames at given times: few other frames are decoded."""

import pytest

from foveate.gateway.media.video import Clip, decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from tests.support.video_samples import FRAGMENTED, clip, number_of


def decode(source: bytes, frames: int) -> Clip:
    return decode_clip(source, frames, 120, lambda size: [(0, 0, *size)], "bilinear", ClipLimits())


def numbers(result: Clip) -> list[int]:
    return [number_of(pixels) for pixels in result.pixels[0]]


def test_a_long_clip_is_decoded_only_around_the_samples() -> None:
    data = clip(count=1500, gop=50, size=(80, 48), options={"bf": "2"})
    result = decode(data, 8)
    assert numbers(result) == [(2 * n + 1) * 1500 // 16 % 240 for n in range(8)]
    assert result.decoded < 8 * 50


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_a_live_recording_is_decoded_only_around_the_samples(container: str) -> None:
    data = clip(
        container=container,
        count=600,
        gop=25,
        size=(80, 48),
        live=True,
        muxing=FRAGMENTED if container == "mp4" else {},
    )
    assert decode(data, 4).decoded < 4 * 30


def test_frames_that_no_other_depends_on_are_skipped() -> None:
    plain = clip(count=120, gop=250, options={"bf": "0"})
    with_b_frames = clip(count=120, gop=250, options={"bf": "3", "b_strategy": "0", "b-pyramid": "none"})
    assert decode(plain, 1).decoded >= 60
    assert decode(with_b_frames, 1).decoded < 30


@pytest.mark.parametrize("container", ["avi", "mov"])
def test_only_samples_are_decoded_if_every_frame_is_a_keyframe(container: str) -> None:
    assert decode(clip("mjpeg", container), 9).decoded == 9
