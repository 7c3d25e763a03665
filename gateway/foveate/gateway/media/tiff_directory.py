"""Limits on the directory of a TIFF, checked before any library reads it.

A reader creates an object for each value of each tag: the offsets of four million strips, 16 MB in the file,
take a gigabyte and ten seconds.
"""

import struct

from foveate.core.errors import BrokenMedia, ImageTooLarge

MAX_TAGS = 512
"""Tags in the directory. Cameras and scanners write fewer than a hundred."""
MAX_VALUES = 200_000
"""Numbers in all tags together: the offset and the length of 100,000 strips or tiles."""
_BYTE_TYPES = (1, 2, 7)
"""Types whose values stay one object: bytes, text and undefined data."""


def check_tiff_directory(data: bytes) -> None:
    """Raises ImageTooLarge for a first directory with too many tags or values, BrokenMedia for none.

    Later directories, and those of EXIF, are never read.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        at = int(struct.unpack_from(order + "Q" if big else order + "I", data, 8 if big else 4)[0])
        count = int(struct.unpack_from(order + ("Q" if big else "H"), data, at)[0])
    except (struct.error, OverflowError):
        raise BrokenMedia("the TIFF is truncated or damaged") from None
    if count > MAX_TAGS:
        raise ImageTooLarge(f"the TIFF has {count} tags; the server reads at most {MAX_TAGS}")
    entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    at += 8 if big else 2
    count = min(count, (len(data) - at) // entry.size)
    entries = entry.iter_unpack(data[at : at + count * entry.size])
    values = sum(number for _, kind, number in entries if kind not in _BYTE_TYPES)
    if values > MAX_VALUES:
        raise ImageTooLarge(
            f"the tags of the TIFF hold {values} values; the server reads at most {MAX_VALUES}. "
            "Save it with larger strips or tiles"
        )
