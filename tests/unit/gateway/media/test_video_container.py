"""Clips that are damaged, or no clips, or made to hurt: refused in one sentence, soon, in little memory."""

import io
import random
import resource
import struct
from pathlib import Path

import pytest
from PIL import Image

from foveate.core.errors import BrokenMedia, ClipTooLarge, FoveateError, UnsupportedMedia
from foveate.gateway.media.video import Clip, decode_clip
from foveate.gateway.media.video_container import MAX_ENTRIES
from foveate.gateway.media.video_demuxer import ClipLimits
from tests.support.video_samples import (
    SAMPLES,
    box,
    clip,
    in_free_space,
    many_in_a_run,
    many_samples,
    number_of,
    patched,
)


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
