"""A cached value and the quality it was computed at, as bytes that can be checked and hold no code."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

_MAGIC = b"FVT1"
_HEAD = struct.Struct(">4sIdII")
"""Magic, checksum of all that follows it, quality, bytes of the fields, number of parts."""
_CHECKED = 8
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One value: a few fields as JSON has them, and parts that are bytes."""

    quality: float
    """Of the plan that it was computed under, in 0..1."""
    fields: Mapping[str, object] = field(default_factory=dict)
    parts: Sequence[bytes] = ()
    short_lived: bool = field(default=False, compare=False)
    """It lacks something that the next one who asks may get; not kept with it."""

    @property
    def measured(self) -> float | None:
        """The quality, where anybody has measured it."""
        return None if self.fields.get("quality", self.quality) is None else self.quality


def encode_entry(entry: CacheEntry) -> bytes:
    fields = orjson.dumps(dict(entry.fields))
    lengths = b"".join(_LENGTH.pack(len(part)) for part in entry.parts)
    body = b"".join([lengths, fields, *entry.parts])
    head = _HEAD.pack(_MAGIC, 0, entry.quality, len(fields), len(entry.parts))
    checksum = zlib.crc32(body, zlib.crc32(head[_CHECKED:]))
    return _HEAD.pack(_MAGIC, checksum, entry.quality, len(fields), len(entry.parts)) + body


def decode_entry(data: bytes) -> CacheEntry | None:
    """None for anything but what `encoded` gave."""
    if len(data) < _HEAD.size:
        return None
    magic, checksum, quality, size, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(memoryview(data)[_CHECKED:]) != checksum:
        return None
    at = _HEAD.size + count * _LENGTH.size
    if at + size > len(data):
        return None
    lengths = [_LENGTH.unpack_from(data, _HEAD.size + i * _LENGTH.size)[0] for i in range(count)]
    if at + size + sum(lengths) != len(data):
        return None
    try:
        fields = orjson.loads(memoryview(data)[at : at + size])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    at, parts = at + size, []
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    return CacheEntry(quality, fields, tuple(parts))
