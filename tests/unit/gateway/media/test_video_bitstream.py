"""Limits on the units of a coded frame."""

import struct

import pytest

from foveate.core.errors import BrokenMedia
from foveate.gateway.media.video_bitstream import MAX_UNITS, check_bitstream_limits, length_prefix_size


def test_a_frame_of_too_many_units_is_refused() -> None:
    """A repeated slice is decoded each time, and a decoder cannot be stopped inside a frame."""
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


@pytest.mark.parametrize(
    ("codec", "header", "size"),
    [
        ("h264", b"\1\x64\0\x1f\xff\xe1", 4),
        ("h264", b"\1\x64\0\x1f\xfd\xe1", 2),
        ("hevc", b"\1" + bytes(20) + b"\x0f", 4),
        ("h264", b"\0\0\0\1\x67\x64", 0),
        ("h264", b"\1\x64", 0),
        ("h264", None, 0),
        ("vp9", b"\1\x64\0\x1f\xff\xe1", 0),
    ],
)
def test_the_length_prefix_is_read_from_the_codec_header(codec: str, header: bytes | None, size: int) -> None:
    assert length_prefix_size(codec, header) == size
