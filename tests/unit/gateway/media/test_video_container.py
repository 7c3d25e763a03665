"""Damaged, hostile and other files: refused in one sentence, soon and in little memory."""

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
    claimed_run,
    claimed_samples,
    clip,
    number_of,
    patched,
    with_hidden_box,
)


def decode(source: bytes | Path, frames: int = 4, limits: ClipLimits | None = None) -> Clip:
    return decode_clip(source, frames, 120, lambda size: [(0, 0, *size)], "bilinear", limits or ClipLimits())


def numbers(result: Clip) -> list[int]:
    return [number_of(pixels) for pixels in result.pixels[0]]


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0" * 5000, b"hello", bytes(range(256)) * 20, b"RIFF\0\0\0\0JUNK"]
)
def test_bytes_of_no_known_format_are_refused(data: bytes) -> None:
    with pytest.raises(BrokenMedia):
        decode(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "JPEG", "WEBP", "AVIF"])
def test_images_are_refused(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    with pytest.raises(UnsupportedMedia, match="not a clip"):
        decode(file.getvalue())


def test_a_truncated_file_is_decoded_up_to_its_end() -> None:
    """The header describes missing frames: only frames before the cut can be sampled."""
    data = clip(count=60, gop=10, muxing={"movflags": "faststart"})
    cut = data[: len(data) - (len(data) - data.index(b"mdat")) // 2]
    with pytest.raises(BrokenMedia):
        decode(cut, 4)
    with pytest.raises(BrokenMedia):
        decode(cut, 1)
    cut = data[: len(data) - (len(data) - data.index(b"mdat")) // 4]
    assert numbers(decode(cut, 1)) == [30]


def test_a_truncated_header_is_refused() -> None:
    data = clip(count=30)
    with pytest.raises(BrokenMedia):
        decode(data[: data.index(b"moov") + 100])
    with pytest.raises(BrokenMedia):
        decode(data[: data.index(b"moov") - 4])


@pytest.mark.parametrize(("codec", "container"), [("libx264", "matroska"), ("libvpx", "webm")])
def test_other_truncated_containers_are_decoded_up_to_their_end(codec: str, container: str) -> None:
    data = clip(codec, container, 60, gop=10)
    with pytest.raises(BrokenMedia):
        decode(data[: len(data) // 3], 4)
    assert numbers(decode(data[: len(data) * 3 // 4], 1)) == [30]


def test_a_truncated_avi_has_the_duration_of_the_rest() -> None:
    data = clip("mjpeg", "avi", 60)
    result = decode(data[: len(data) * 3 // 4], 1)
    assert numbers(result) == [int(result.duration_s * 25 / 2)]
    assert 1.6 < result.duration_s < 2


@pytest.mark.parametrize("kind", ["fragments", "vp8"])
def test_a_truncated_live_recording_is_decoded_to_its_end(kind: str) -> None:
    data = SAMPLES[kind]()
    result = decode(data[: len(data) * 2 // 3], 4)
    assert sorted(set(numbers(result))) == numbers(result)
    assert 0.3 < result.duration_s < 1.2


@pytest.mark.parametrize("kind", ["mp4", "mkv", "hevc", "vp9"])
def test_damage_is_reported_if_it_affects_a_sample(kind: str) -> None:
    """A sample is the right frame, or the clip is refused."""
    generator = random.Random(3)
    data, refused, decoded = SAMPLES[kind](), 0, 0
    start = data.index(b"mdat") if kind in ("mp4", "hevc") else len(data) // 4
    for _ in range(60):
        at = generator.randrange(start, start + (len(data) - start) // 2)
        damaged = data[:at] + generator.randbytes(20) + data[at + 20 :]
        try:
            result = decode(damaged, 3)
        except (BrokenMedia, UnsupportedMedia):
            refused += 1
        else:
            decoded += 1
            assert len(result.at_s) == 3
    assert refused > 5
    assert decoded > 5


def test_damage_outside_the_samples_is_ignored() -> None:
    data = clip(count=60, gop=10)
    at = data.index(b"mdat") + 40
    assert numbers(decode(data[:at] + b"\xaa" * 400 + data[at + 400 :], 1)) == [30]


@pytest.mark.parametrize(
    "data",
    [
        claimed_samples(MAX_ENTRIES * 50),
        claimed_run(MAX_ENTRIES * 50),
        with_hidden_box(b"stsz", struct.pack(">III", 0, 1, MAX_ENTRIES * 50)),
        with_hidden_box(b"free", b"\0\0\0\1trun" + struct.pack(">QII", 24, 0, MAX_ENTRIES * 50)),
        with_hidden_box(b"meta", bytes(4) + box(b"iinf", struct.pack(">II", 1 << 24, 1 << 27))),
        with_hidden_box(b"cmov", bytes(20)),
    ],
)
def test_a_small_file_with_huge_tables_is_refused(data: bytes) -> None:
    """The tables list samples that do not exist; libav would allocate gigabytes for them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ClipTooLarge, UnsupportedMedia)):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_each_edit_counts_all_samples() -> None:
    data = clip(count=30)
    many = patched(data, b"elst", 8, struct.pack(">I", MAX_ENTRIES // 10))
    with pytest.raises(ClipTooLarge):
        decode(many)


def damage(data: bytes, generator: random.Random) -> bytes:
    """The file with changed bytes, mostly in a header; or truncated; or with a part removed."""
    kind, changed = generator.randrange(4), bytearray(data)
    at = generator.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        del changed[at : at + generator.randrange(1, 500)]
    for _ in range(generator.choice((1, 5, 50))):
        near = generator.choice((len(changed), min(1500, len(changed))))
        changed[generator.choice((1, -1)) * generator.randrange(near)] = generator.choice(
            (0, 1, 127, 255, generator.randrange(256))
        )
    return bytes(changed)


@pytest.mark.parametrize("kind", SAMPLES)
def test_any_damaged_file_is_decoded_or_refused_in_one_sentence(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    generator, data = random.Random(kind), SAMPLES[kind]()
    capfd.readouterr()
    decoded = refused = 0
    for _ in range(40):
        try:
            decode(damage(data, generator), 5, ClipLimits(decode_s=5))
            decoded += 1
        except FoveateError as error:
            assert error.status in (413, 415, 422)
            assert 10 < len(error.detail) < 120
            refused += 1
    assert decoded
    assert refused
    assert capfd.readouterr() == ("", "")
