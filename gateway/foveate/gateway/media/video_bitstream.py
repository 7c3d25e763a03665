"""Limits on one coded frame before it is decoded: the number of its units.

A decoder cannot be stopped inside a frame, and each unit may cost as much as a whole frame: an HEVC frame of
340 kB that repeats one slice 2,000 times decodes for half a minute.
"""

from foveate.core.errors import BrokenMedia

MAX_UNITS = 200
"""Slices and their parameter sets in a frame. Encoders write one slice, or one for each thread or each row of
blocks."""
MAX_SCANS = 16
"""Scans in a JPEG frame: three where it is not interleaved, six in two fields."""


def check_bitstream_limits(codec: str, data: bytes, prefix_size: int) -> None:
    """Raises BrokenMedia for a coded frame with too many units.

    prefix_size: bytes of the length field before each unit of H.264 and HEVC; 0 where start codes separate
    the units.
    """
    if codec in ("h264", "hevc"):
        # Some files mix both forms, and the decoder accepts either.
        too_many = max(data.count(b"\0\0\1"), _count_units(data, prefix_size)) > MAX_UNITS
    elif codec == "av1":
        too_many = _count_obus(data) > MAX_UNITS
    else:
        too_many = codec == "mjpeg" and data.count(b"\xff\xda") > MAX_SCANS
    if too_many:
        raise BrokenMedia("a frame of the clip is split into too many units; encode it with fewer slices")


def length_prefix_size(codec: str, header: bytes | None) -> int:
    """Bytes of the length field before each unit, from the codec's header; 0 where there is none.

    The headers are avcC and hvcC of ISO/IEC 14496-15.
    """
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or not header or len(header) <= at or header[:3] in (b"\0\0\0", b"\0\0\1"):
        return 0
    return (header[at] & 3) + 1


def _count_units(data: bytes, prefix_size: int) -> int:
    at = units = 0
    while prefix_size and at < len(data) and units <= MAX_UNITS:
        at += prefix_size + int.from_bytes(data[at : at + prefix_size], "big")
        units += 1
    return units


def _count_obus(data: bytes) -> int:
    """Open bitstream units of AV1 (specification, section 5.3).

    A unit is a header byte, an optional extension byte, and a length in groups of 7 bits.
    """
    at = units = 0
    while at < len(data) and units <= MAX_UNITS:
        head = data[at]
        units, at = units + 1, at + 1 + (head >> 2 & 1)
        if not head & 2:
            break  # a unit without a length is the last
        length = shift = 0
        while at < len(data) and shift < 56:
            length |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                break
        at += length
    return units
