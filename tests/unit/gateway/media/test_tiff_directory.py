"""The limits on the directory of a TIFF, in both byte orders and both forms."""

import struct

import pytest

from foveate.core.errors import BrokenMedia, ImageTooLarge
from foveate.gateway.media.tiff_directory import MAX_TAGS, MAX_VALUES, check_tiff_directory
from tests.support.media_samples import encode, flat, scene

LONG, UNDEFINED = 4, 7


def directory(order: str, big: bool, tags: int, kind: int, count: int) -> bytes:
    """A TIFF with this many tags, of this many values each."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    entry = struct.pack(order + ("HHQQ" if big else "HHII"), 256, kind, count, 0)
    if big:
        return head + struct.pack(order + "HHQQ", 8, 0, 16, tags) + entry * tags
    return head + struct.pack(order + "IH", 8, tags) + entry * tags


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_limits_are_exact(order: str, big: bool) -> None:
    check_tiff_directory(directory(order, big, MAX_TAGS, LONG, 1))
    check_tiff_directory(directory(order, big, 2, LONG, MAX_VALUES // 2))
    check_tiff_directory(directory(order, big, 2, UNDEFINED, 2**31))
    with pytest.raises(ImageTooLarge, match=f"{MAX_TAGS + 1} tags"):
        check_tiff_directory(directory(order, big, MAX_TAGS + 1, LONG, 1))
    with pytest.raises(ImageTooLarge, match="larger strips or tiles"):
        check_tiff_directory(directory(order, big, 2, LONG, MAX_VALUES // 2 + 1))


@pytest.mark.parametrize("data", [b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + b"\xff" * 8])
def test_a_file_without_a_directory_is_damaged(data: bytes) -> None:
    with pytest.raises(BrokenMedia):
        check_tiff_directory(data)


def test_ordinary_files_pass() -> None:
    for compression in ("raw", "tiff_lzw", "jpeg"):
        check_tiff_directory(encode(scene(900, 700), "TIFF", compression=compression))
    check_tiff_directory(encode(flat("P", 0), "TIFF", big_tiff=True))
    check_tiff_directory(encode(scene(40, 7000), "TIFF", strip_size=120))
