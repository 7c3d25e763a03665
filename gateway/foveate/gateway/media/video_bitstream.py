"""One coded frame before it is decoded: in how many pieces it is.

A decoder cannot be stopped inside a frame, and each piece may cost as much as all of it: a slice of HEVC that
is repeated 2,000 times makes a frame of 340 kB take half a minute.
"""

from foveate.core.errors import BrokenMedia

MAX_PIECES = 200
"""Slices and what goes with them. Encoders make one slice, one a thread, or one a row of blocks."""
MAX_SCANS = 16
"""Of a JPEG: three where it is not interleaved, twice that in two fields."""


def check_pieces(codec: str, data: bytes, prefix: int) -> None:
    """`prefix`: bytes of the length before each unit of H.264 and HEVC, 0 where marks part them. Raises
    BrokenMedia."""
    if codec in ("h264", "hevc"):
        # Some files mix both ways, and the decoder takes either.
        too_many = max(data.count(b"\0\0\1"), _units(data, prefix)) > MAX_PIECES
    elif codec == "av1":
        too_many = _obus(data) > MAX_PIECES
    else:
        too_many = codec == "mjpeg" and data.count(b"\xff\xda") > MAX_SCANS
    if too_many:
        raise BrokenMedia("a frame of the clip is in more pieces than are read here")


def prefix_of(codec: str, header: bytes | None) -> int:
    """How long the lengths are, by the codec's header (ISO/IEC 14496-15: avcC, hvcC); 0: there are none."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or not header or len(header) <= at or header[:3] in (b"\0\0\0", b"\0\0\1"):
        return 0
    return (header[at] & 3) + 1


def _units(data: bytes, prefix: int) -> int:
    at = units = 0
    while prefix and at < len(data) and units <= MAX_PIECES:
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
        units += 1
    return units


def _obus(data: bytes) -> int:
    """Units of AV1 (section 5.3): a byte, perhaps one more, then a length in groups of 7 bits."""
    at = units = 0
    while at < len(data) and units <= MAX_PIECES:
        head = data[at]
        units, at = units + 1, at + 1 + (head >> 2 & 1)
        if not head & 2:
            break  # without a length it is the last
        length = shift = 0
        while at < len(data) and shift < 56:
            length |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                break
        at += length
    return units
