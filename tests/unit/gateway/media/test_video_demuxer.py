"""Limits on a video, and files that are no video: refused in one sentence, soon and in little memory."""

import struct
import time
from pathlib import Path

import pytest

from foveate.core.errors import BrokenMedia, ClipTooLarge, UnsupportedMedia
from foveate.gateway.media import video_demuxer
from foveate.gateway.media.video import Clip, decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from tests.support.video_samples import SAMPLES, SIZE, clip, patched, sound


def decode(source: bytes | Path, frames: int = 4, limits: ClipLimits | None = None) -> Clip:
    return decode_clip(source, frames, 120, lambda size: [(0, 0, *size)], "bilinear", limits or ClipLimits())


def test_a_file_of_sound_alone_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="no video"):
        decode(sound())


def test_an_unsupported_codec_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedMedia, match="mpeg2video"):
        decode(clip("mpeg2video", "matroska", 5))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\n{path}\n",
        "ffconcat version 1.0\nfile {path}\n",
        "<?xml version='1.0'?><MPD><BaseURL>{path}</BaseURL></MPD>",
        "v=0\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_a_playlist_of_other_files_is_refused(text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(clip(count=3))
    sent = tmp_path / "sent"
    sent.write_text(text.format(path=other))
    with pytest.raises(BrokenMedia):
        decode(sent)


def test_a_clip_that_is_too_long_is_refused() -> None:
    with pytest.raises(ClipTooLarge, match="longer than 2 s"):
        decode(clip(count=60), limits=ClipLimits(max_s=2))
    with pytest.raises(ClipTooLarge, match="longer than 2 s"):
        decode(clip("libvpx", "webm", 60, live=True), limits=ClipLimits(max_s=2))


@pytest.mark.parametrize("kind", SAMPLES)
def test_frames_that_are_too_large_are_refused(kind: str) -> None:
    with pytest.raises(ClipTooLarge, match=f"{SIZE[0]} x {SIZE[1]} pixels"):
        decode(SAMPLES[kind](), limits=ClipLimits(max_pixels=SIZE[0] * SIZE[1] - 1))


@pytest.mark.parametrize("scale", [4, 20])
def test_frames_larger_than_the_header_says_are_refused(scale: int) -> None:
    large = clip(count=3, size=(SIZE[0] * scale, 96 * scale))
    small = patched(large, b"avc1", 28, struct.pack(">HH", 64, 64))
    with pytest.raises((ClipTooLarge, BrokenMedia)):
        decode(small, limits=ClipLimits(max_pixels=SIZE[0] * 96))


def test_decoding_that_takes_too_long_is_stopped() -> None:
    data = clip(count=600, gop=600)
    started = time.monotonic()
    with pytest.raises(ClipTooLarge, match=r"over 0\.02 s"):
        decode(data, 16, ClipLimits(decode_s=0.02))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", ["MAX_PACKETS", "MAX_DECODED"])
def test_a_clip_of_too_many_frames_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_demuxer, name, 10)
    with pytest.raises(ClipTooLarge, match=r"10 (coded )?frames"):
        decode(clip("libvpx", "webm", 60, live=True, gop=60), 8)
