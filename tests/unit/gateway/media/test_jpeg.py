"""JPEG files with harmless faults give the pixels of the clean file; those that lost pixels are refused."""

import io
import re
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import BrokenMedia
from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.image_tiles import decode_whole
from foveate.gateway.media.jpeg import read_metadata
from tests.support.media_samples import encode, exif, flat, scene


def detailed(mode: str = "RGB") -> Image.Image:
    """An image with details in every block, so that every scan has data."""
    noise = np.random.default_rng(5).integers(0, 60, (151, 203, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(scene(203, 151)) // 2 + noise).convert(mode)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "4:4:4": ("RGB", {"subsampling": 0, "quality": 95}),
    "optimised": ("RGB", {"optimize": True}),
    "progressive": ("RGB", {"progressive": True}),
    "restart": ("RGB", {"restart_marker_blocks": 7}),
    "progressive restart": ("RGB", {"progressive": True, "restart_marker_rows": 1}),
    "grey": ("L", {}),
    "grey progressive": ("L", {"progressive": True}),
    "cmyk": ("CMYK", {}),
    "exif": ("RGB", {"exif": exif(6)}),
}
FILES = {name: encode(detailed(mode), "JPEG", **options) for name, (mode, options) in KINDS.items()}


def after_first_segment(data: bytes) -> int:
    return 4 + int.from_bytes(data[4:6], "big")


def before_tables(data: bytes, filler: bytes) -> bytes:
    at = after_first_segment(data)
    return data[:at] + filler + data[at:]


def before_scan(data: bytes, filler: bytes) -> bytes:
    at = data.index(b"\xff\xda")
    return data[:at] + filler + data[at:]


def before_end(data: bytes, filler: bytes) -> bytes:
    return data[:-2] + filler + data[-2:]


def before_second_scan(data: bytes, filler: bytes) -> bytes:
    """Before the tables of the second scan, or the end."""
    at = data.index(b"\xff\xda") + 2
    match = re.search(rb"\xff[\xc4\xda\xd9]", data[at:])
    assert match
    return data[: at + match.start()] + filler + data[at + match.start() :]


def before_restarts(data: bytes, filler: bytes) -> bytes:
    """Before every restart marker."""
    return re.sub(rb"\xff[\xd0-\xd7]", lambda match: filler + match[0], data)


def with_other_jfif(data: bytes, _: bytes = b"") -> bytes:
    at = data.find(b"JFIF\0")
    return data if at < 0 else data[: at + 5] + b"\2" + data[at + 6 :]


def with_other_adobe(data: bytes, _: bytes = b"") -> bytes:
    """With a code of the Adobe segment that means nothing."""
    segment = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x09"
    return data if b"Adobe" in data else data[:2] + segment + data[2:]


def with_broken_profile(data: bytes, _: bytes = b"") -> bytes:
    """With the second part of a profile, and not the first."""
    body = b"ICC_PROFILE\0\2\2" + bytes(50)
    return data[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(body)) + body + data[2:]


def with_odd_scan_parameters(data: bytes, _: bytes = b"") -> bytes:
    """With spectral selection in a sequential scan, where it has no meaning."""
    if b"\xff\xc2" in data:
        return data
    at = data.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[: end - 3] + bytes(3) + data[end:]


def without_end(data: bytes, _: bytes = b"") -> bytes:
    return data[:-2]


def with_half_an_end(data: bytes, _: bytes = b"") -> bytes:
    return data[:-1]


FILLED = [before_tables, before_scan, before_end, before_second_scan, before_restarts]
FILLERS = [b"\0", b"\0\0", b"\0" * 4, b"\0" * 9, b"\0" * 100, b"\0" * 70_000]
CHANGED = [
    with_other_jfif,
    with_other_adobe,
    with_broken_profile,
    with_odd_scan_parameters,
    without_end,
    with_half_an_end,
]


def whole(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_whole(data, 4_000_000))


def small(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, InputSpec(0.875), 32, 4_000_000)


def assert_same_pixels(data: bytes, clean: bytes) -> None:
    assert (whole(data) == whole(clean)).all()
    assert (small(data) == small(clean)).all()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("place", FILLED)
def test_filler_before_a_marker_changes_no_pixel(kind: str, place: Any) -> None:
    clean = FILES[kind]
    for filler in FILLERS:
        assert_same_pixels(place(clean, filler), clean)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("change", CHANGED)
def test_a_harmless_fault_changes_no_pixel(kind: str, change: Any) -> None:
    assert_same_pixels(change(FILES[kind]), FILES[kind])


@pytest.mark.parametrize("kind", FILES)
def test_all_harmless_faults_together_change_no_pixel(kind: str) -> None:
    clean = FILES[kind]
    data = clean
    for place in FILLED:
        data = place(data, b"\0" * 12)
    for change in CHANGED:
        data = change(data)
    assert_same_pixels(data, clean)


@pytest.mark.parametrize("filler", [b"\xff" * 9, b"\x7f", b"ab", b"\x31" * 500])
def test_filler_of_other_bytes_before_the_end_changes_no_pixel(filler: bytes) -> None:
    for clean in FILES.values():
        assert_same_pixels(before_end(clean, filler), clean)


def cuts(data: bytes) -> list[int]:
    """Positions in the entropy-coded data: its first and last bytes, the ends of scans, and 40 others."""
    first = data.index(b"\xff\xda") + 14
    ends = [match.start() for match in re.finditer(rb"\xff[\xc4\xda]", data) if match.start() > first]
    others = np.random.default_rng(1).integers(first, len(data) - 3, 40).tolist()
    return [first, first + 1, len(data) - 4, len(data) - 3, *ends, *others]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9", b"\0" * 50 + b"\xff\xd9", bytes(5000)])
def test_a_file_cut_in_its_data_is_refused(kind: str, end: bytes) -> None:
    data = FILES[kind]
    if len(end) == 52 and b"\xff\xc2" in data:
        pytest.skip("50 zeros may complete a short scan of a progressive file; libjpeg cannot tell")
    for at in cuts(data):
        if end and b"\xff\xc2" in data and data[at : at + 2] in (b"\xff\xc4", b"\xff\xda"):
            continue  # a progressive file that ends after a scan is complete to a decoder
        with pytest.raises(BrokenMedia):
            small(data[:at] + end)


@pytest.mark.parametrize("kind", FILES)
def test_removed_data_is_refused_behind_harmless_faults_too(kind: str) -> None:
    """libjpeg reports its first warning only."""
    data = FILES[kind]
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    damaged = before_tables(data[: middle - 300] + data[middle:], b"\0\0\0")
    for change in CHANGED:
        with pytest.raises(BrokenMedia):
            small(change(damaged))


def test_left_over_data_of_a_damaged_scan_is_refused() -> None:
    clean = FILES["baseline"]
    middle = (clean.index(b"\xff\xda") + len(clean)) // 2
    with pytest.raises(BrokenMedia):
        small(clean[:middle] + clean[middle - 200 : middle] + clean[middle:])


def test_orientation_is_read_behind_filler() -> None:
    upright, turned = flat("RGB", (9, 9, 9), (64, 32)), encode(flat("RGB", 0, (64, 32)), "JPEG", exif=exif(6))
    at = turned.index(b"\xff\xe1")
    assert decode_whole(turned[:at] + bytes(7) + turned[at:], 10_000).size == upright.size[::-1]


def test_metadata_of_several_segments_is_joined() -> None:
    profile = bytes(range(256)) * 500
    data = encode(flat("RGB", 0), "JPEG", icc_profile=profile, exif=exif(3))
    assert read_metadata(data) == (exif(3)[6:], profile)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
    at = data.index(b"ICC_PROFILE\0\2")
    assert read_metadata(data[: at + 12] + b"\7" + data[at + 13 :]) == (exif(3)[6:], b"")


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe0\0"]
)
def test_a_file_without_content_has_no_metadata(data: bytes) -> None:
    assert read_metadata(data) == (b"", b"")
