"""Hostile and damaged image files: refused in one sentence, soon and in little memory."""

import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import BrokenMedia, FoveateError, ImageTooLarge, UnsupportedMedia
from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image, silence_decoder_warnings
from tests.support import media_samples as samples
from tests.support.media_samples import encode, flat, scene

MAX_PIXELS = 4_000_000
AVIF = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(20)


def decode(data: bytes, limit: int = MAX_PIXELS) -> None:
    decode_image(data, InputSpec(0.875), 32, limit)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"hello" * 99, b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF....WEBP"]
)
def test_bytes_of_no_known_format_are_refused(data: bytes) -> None:
    with pytest.raises(BrokenMedia):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypisom" + bytes(20),
        b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm",
        b"%PDF-1.7\n",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\0\0\0\x1cftypheic" + bytes(20),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1",
        samples.bmp_rle(16, 16),
        encode(flat("LAB", (50, 0, 0)), "TIFF"),
        encode(flat("1", 1), "TIFF", compression="group4"),
    ],
)
def test_known_but_unsupported_formats_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia) as refusal:
        decode(data)
    assert "not supported" in refusal.value.detail


def test_avif_is_refused_as_unsupported() -> None:
    with pytest.raises(UnsupportedMedia, match="image/avif is not supported"):
        decode(AVIF)


BOMBS = {
    "jpeg": samples.patched_jpeg(65000, 65000),
    "png": samples.png(60000, 60000),
    "gif screen": encode(flat("P", 0), "GIF").replace(b"\x30\x00\x30\x00", b"\xff\xff\xff\xff"),
    "gif frame": samples.gif_frame(65535, 65535),
    "gif frame under Pillow's own limit": samples.gif_frame(10000, 10000),
    "webp canvas": samples.webp_canvas(16384, 16384),
    "tiff": samples.tiff({256: (4, 60000), 257: (4, 60000), 258: (3, 8), 262: (3, 1), 273: (4, 8)}, b"\0\0"),
    "tiff tile": samples.tiff_with_huge_tile(8192),
    "bmp": encode(flat("L", 0), "BMP").replace(b"\x30\0\0\0\x30\0\0\0", b"\0\0\1\0\0\0\1\0"),
    "just over": encode(flat("L", 0, (2001, 2000)), "PNG"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(name: str) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(ImageTooLarge):
        decode(BOMBS[name])
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert seconds < 0.5


def test_bombs_allocate_no_memory() -> None:
    # tracemalloc does not count what decoders allocate in C; the resident size of the process does.
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in BOMBS.values():
        with pytest.raises(ImageTooLarge):
            decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_an_image_at_the_limit_is_decoded() -> None:
    decode(encode(flat("L", 0, (2000, 2000)), "PNG"))


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt"])
def test_a_text_bomb_in_a_png_is_not_expanded(chunk: bytes) -> None:
    text = zlib.compress(bytes(100_000_000))
    body = b"a\0\0" + text if chunk == b"zTXt" else b"a\0\1\0\0\0" + text
    data = samples.png(16, 16, samples.png_chunk(chunk, body))
    tracemalloc.start()
    decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    started = time.perf_counter()
    with pytest.raises(BrokenMedia, match="scans"):
        decode(samples.many_scans(5000))
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    data = encode(scene(200, 150), kind)
    with pytest.raises(BrokenMedia):
        decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_with_an_end_marker_is_refused(progressive: bool) -> None:
    data = encode(scene(200, 150), "JPEG", progressive=progressive)
    with pytest.raises(BrokenMedia):
        decode(data[: len(data) // 2 - 7] + b"\xff\xd9")


def test_error_messages_are_one_sentence_without_internals() -> None:
    for data in (b"", b"?", b"%PDF-", samples.png(60000, 60000), encode(scene(64, 64), "JPEG")[:500]):
        with pytest.raises(FoveateError) as refusal:
            decode(data)
        assert "\n" not in refusal.value.detail
        assert "0x" not in refusal.value.detail
        assert len(refusal.value.detail) < 120


def damaged(data: bytes, generator: np.random.Generator) -> list[bytes]:
    """The file truncated at many positions, and with a few bytes changed."""
    files = [data[:cut] for cut in generator.integers(0, len(data), 30)]
    for trial in range(70):
        changed = bytearray(data)
        # Every second time in the header, which holds lengths, sizes and offsets.
        reach = min(len(data), 120) if trial % 2 else len(data)
        for at in generator.integers(0, reach, generator.integers(1, 7)):
            changed[at] = generator.integers(256)
        files.append(bytes(changed))
    return files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "MPO"])
def test_damaged_files_decode_or_are_refused(kind: str) -> None:
    silence_decoder_warnings()
    generator = np.random.default_rng(sum(kind.encode()))
    variants: list[dict[str, Any]] = [{}]
    if kind == "TIFF":
        variants += [{"compression": "tiff_lzw"}, {"compression": "jpeg"}]
    if kind in ("GIF", "WEBP", "PNG"):
        variants.append({"save_all": True, "append_images": [scene(60, 50, 2)]})
    if kind == "JPEG":
        variants += [{"progressive": True}, {"exif": samples.exif(6)}]
    answers = set()
    for options in variants:
        for data in damaged(encode(scene(60, 50), kind, **options), generator):
            try:
                decode(data, limit=200_000)
                answers.add("decoded")
            except FoveateError as error:
                assert error.status in (413, 415, 422)
                answers.add("refused")
    assert answers == {"decoded", "refused"}
