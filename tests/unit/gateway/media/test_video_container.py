"""Clips that are damaged, or no clips, or made to hurt: refused in one sentence, soon, in little memory."""

import io
import random
import resource
import struct
import time
from pathlib import Path

import pytest
from PIL import Image

from foveate.core.errors import BrokenMedia, ClipTooLarge, FoveateError, UnsupportedMedia
from foveate.gateway.media import video_demuxer
from foveate.gateway.media.video import Clip, decode_clip
from foveate.gateway.media.video_bitstream import MAX_UNITS, check_bitstream_limits
from foveate.gateway.media.video_container import MAX_ENTRIES
from foveate.gateway.media.video_demuxer import ClipLimits
from tests.support.video_samples import (
    FRAGMENTED,
    SIZE,
    box,
    clip,
    in_free_space,
    many_in_a_run,
    many_samples,
    number_of,
    patched,
    sound,
)

SAMPLES = {
    "mp4": lambda: clip(count=30, gop=10),
    "fragments": lambda: clip(count=30, muxing=FRAGMENTED),
    "hevc": lambda: clip("libx265", count=30),
    "mkv": lambda: clip(container="matroska", count=30),
    "vp9": lambda: clip("libvpx-vp9", "webm", 30),
    "vp8": lambda: clip("libvpx", "webm", 30, live=True),
    "avi": lambda: clip("mpeg4", "avi", 30, options={"bf": "2"}),
    "avi h264": lambda: clip(container="avi", count=30),
    "mjpeg": lambda: clip("mjpeg", "avi", 12),
    "mov": lambda: clip("mjpeg", "mov", 12),
}


def decode(source: bytes | Path, frames: int = 4, limits: ClipLimits | None = None) -> Clip:
    return decode_clip(source, frames, 120, lambda size: [(0, 0, *size)], "bilinear", limits or ClipLimits())


def numbers(found: Clip) -> list[int]:
    return [number_of(pixels) for pixels in found.pixels[0]]


# What is no clip


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0" * 5000, b"hello", bytes(range(256)) * 20, b"RIFF\0\0\0\0WAVE"]
)
def test_what_is_no_clip_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenMedia):
        decode(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "JPEG", "WEBP", "AVIF"])
def test_pictures_are_no_clips(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    with pytest.raises(UnsupportedMedia, match="not a clip"):
        decode(file.getvalue())


def test_sound_alone_is_no_clip() -> None:
    with pytest.raises(UnsupportedMedia, match="no video"):
        decode(sound())


def test_other_codecs_are_refused_by_name() -> None:
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
def test_a_list_of_other_files_is_no_clip(text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(clip(count=3))
    sent = tmp_path / "sent"
    sent.write_text(text.format(path=other))
    with pytest.raises(BrokenMedia):
        decode(sent)


# What is damaged


def test_what_is_cut_off_is_read_as_far_as_it_goes() -> None:
    """The header promises what is not there: frames from before the cut can be had, and no others."""
    data = clip(count=60, gop=10, muxing={"movflags": "faststart"})
    cut = data[: len(data) - (len(data) - data.index(b"mdat")) // 2]
    with pytest.raises(BrokenMedia):
        decode(cut, 4)
    with pytest.raises(BrokenMedia):
        decode(cut, 1)
    cut = data[: len(data) - (len(data) - data.index(b"mdat")) // 4]
    assert numbers(decode(cut, 1)) == [30]


def test_a_header_that_is_cut_off_is_refused() -> None:
    data = clip(count=30)
    with pytest.raises(BrokenMedia):
        decode(data[: data.index(b"moov") + 100])
    with pytest.raises(BrokenMedia):
        decode(data[: data.index(b"moov") - 4])


@pytest.mark.parametrize(("codec", "container"), [("libx264", "matroska"), ("libvpx", "webm")])
def test_other_containers_cut_off(codec: str, container: str) -> None:
    data = clip(codec, container, 60, gop=10)
    with pytest.raises(BrokenMedia):
        decode(data[: len(data) // 3], 4)
    assert numbers(decode(data[: len(data) * 3 // 4], 1)) == [30]


def test_an_avi_that_was_cut_off_lasts_as_long_as_what_is_left() -> None:
    data = clip("mjpeg", "avi", 60)
    found = decode(data[: len(data) * 3 // 4], 1)
    assert numbers(found) == [int(found.duration_s * 25 / 2)]
    assert 1.6 < found.duration_s < 2


@pytest.mark.parametrize("kind", ["fragments", "vp8"])
def test_a_live_recording_that_was_cut_off_is_read_to_its_end(kind: str) -> None:
    data = SAMPLES[kind]()
    found = decode(data[: len(data) * 2 // 3], 4)
    assert sorted(set(numbers(found))) == numbers(found)
    assert 0.3 < found.duration_s < 1.2


@pytest.mark.parametrize("kind", ["mp4", "mkv", "hevc", "vp9"])
def test_damage_is_told_where_it_shows(kind: str) -> None:
    """Never another frame than the one asked for."""
    chance = random.Random(3)
    data, refused, read = SAMPLES[kind](), 0, 0
    start = data.index(b"mdat") if kind in ("mp4", "hevc") else len(data) // 4
    for _ in range(60):
        at = chance.randrange(start, start + (len(data) - start) // 2)
        damaged = data[:at] + chance.randbytes(20) + data[at + 20 :]
        try:
            found = decode(damaged, 3)
        except (BrokenMedia, UnsupportedMedia):
            refused += 1
        else:
            read += 1
            assert len(found.at_s) == 3
    assert refused > 5
    assert read > 5


def test_damage_in_a_part_that_is_not_shown_does_no_harm() -> None:
    data = clip(count=60, gop=10)
    at = data.index(b"mdat") + 40
    assert numbers(decode(data[:at] + b"\xaa" * 400 + data[at + 400 :], 1)) == [30]


# What is too much


def test_a_clip_that_lasts_too_long() -> None:
    with pytest.raises(ClipTooLarge, match="longer than 2 s"):
        decode(clip(count=60), limits=ClipLimits(max_s=2))
    with pytest.raises(ClipTooLarge, match="longer than 2 s"):
        decode(clip("libvpx", "webm", 60, live=True), limits=ClipLimits(max_s=2))


@pytest.mark.parametrize("kind", SAMPLES)
def test_frames_that_are_too_large(kind: str) -> None:
    with pytest.raises(ClipTooLarge, match=f"{SIZE[0]} x {SIZE[1]} pixels"):
        decode(SAMPLES[kind](), limits=ClipLimits(max_pixels=SIZE[0] * SIZE[1] - 1))


@pytest.mark.parametrize("scale", [4, 20])
def test_frames_that_are_larger_than_the_header_tells(scale: int) -> None:
    large = clip(count=3, size=(SIZE[0] * scale, 96 * scale))
    small = patched(large, b"avc1", 28, struct.pack(">HH", 64, 64))
    with pytest.raises((ClipTooLarge, BrokenMedia)):
        decode(small, limits=ClipLimits(max_pixels=SIZE[0] * 96))


def test_decoding_that_takes_too_long() -> None:
    data = clip(count=600, gop=600)
    began = time.monotonic()
    with pytest.raises(ClipTooLarge, match=r"over 0\.02 s"):
        decode(data, 16, ClipLimits(decode_s=0.02))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("name", ["MAX_PACKETS", "MAX_DECODED"])
def test_more_frames_than_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_demuxer, name, 10)
    with pytest.raises(ClipTooLarge, match=r"10 (coded )?frames"):
        decode(clip("libvpx", "webm", 60, live=True, gop=60), 8)


@pytest.mark.parametrize(
    "data",
    [
        many_samples(MAX_ENTRIES * 50),
        many_in_a_run(MAX_ENTRIES * 50),
        in_free_space(b"stsz", struct.pack(">III", 0, 1, MAX_ENTRIES * 50)),
        in_free_space(b"free", b"\0\0\0\1trun" + struct.pack(">QII", 24, 0, MAX_ENTRIES * 50)),
        in_free_space(b"meta", bytes(4) + box(b"iinf", struct.pack(">II", 1 << 24, 1 << 27))),
        in_free_space(b"cmov", bytes(20)),
    ],
)
def test_a_small_file_that_would_fill_memory(data: bytes) -> None:
    """With tables that count what is not there: libav would take gigabytes for these."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ClipTooLarge, UnsupportedMedia)):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_edits_count_as_often_as_they_show_a_frame() -> None:
    data = clip(count=30)
    many = patched(data, b"elst", 8, struct.pack(">I", MAX_ENTRIES // 10))
    with pytest.raises(ClipTooLarge):
        decode(many)


def test_a_frame_in_too_many_pieces() -> None:
    """A slice that is sent over and over is decoded as often, and a decoder cannot be stopped meanwhile."""
    unit = struct.pack(">I", 20) + bytes(range(1, 21))
    check_bitstream_limits("h264", unit * MAX_UNITS, 4)
    check_bitstream_limits("mjpeg", b"\xff\xda1234" * 3, 0)
    check_bitstream_limits("av1", b"\x32\x02ab" * MAX_UNITS, 0)
    for codec, data, prefix in [
        ("h264", unit * (MAX_UNITS + 1), 4),
        ("hevc", b"\0\1a" * (MAX_UNITS + 1), 2),
        ("hevc", b"\0\0\1abc" * (MAX_UNITS + 1), 0),
        ("hevc", b"\0\0\1abc" * (MAX_UNITS + 1), 4),
        ("av1", b"\x32\x02ab" * (MAX_UNITS + 1), 0),
        ("mjpeg", b"\xff\xda1234" * 300, 0),
    ]:
        with pytest.raises(BrokenMedia, match="units"):
            check_bitstream_limits(codec, data, prefix)


# Anything at all


def broken(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, most often in a header; or cut off; or a part missing."""
    kind, changed = chance.randrange(4), bytearray(data)
    at = chance.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        del changed[at : at + chance.randrange(1, 500)]
    for _ in range(chance.choice((1, 5, 50))):
        near = chance.choice((len(changed), min(1500, len(changed))))
        changed[chance.choice((1, -1)) * chance.randrange(near)] = chance.choice(
            (0, 1, 127, 255, chance.randrange(256))
        )
    return bytes(changed)


@pytest.mark.parametrize("kind", SAMPLES)
def test_whatever_comes_is_read_or_refused_in_a_sentence(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    chance, data = random.Random(kind), SAMPLES[kind]()
    capfd.readouterr()
    read = refused = 0
    for _ in range(40):
        try:
            decode(broken(data, chance), 5, ClipLimits(decode_s=5))
            read += 1
        except FoveateError as error:
            assert error.status in (413, 415, 422)
            assert 10 < len(error.detail) < 120
            refused += 1
    assert read
    assert refused
    assert capfd.readouterr() == ("", "")
