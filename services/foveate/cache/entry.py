"""A cached value with the quality of its plan, encoded as bytes with a checksum and without pickled code."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

_MAGIC = b"FVT1"
_HEADER = struct.Struct(">4sIdII")
"""Magic, checksum of all that follows it, quality, bytes of the fields, number of parts."""
_CHECKSUM_START = 8
"""The checksum covers the bytes from here on."""
_LENGTH = struct.Struct(">I")
"""Length of one part, in bytes."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One cached value: fields that JSON can hold, and parts that are bytes."""

    quality: float
    """Quality of the plan that the value was computed with, in 0..1."""
    fields: Mapping[str, object] = field(default_factory=dict)
    parts: Sequence[bytes] = ()
    short_lived: bool = field(default=False, compare=False)
    """The value lacks something that a later request may get, so that it is stored for seconds only. Not
    part of the encoded entry."""

    @property
    def measured_quality(self) -> float | None:
        """The quality, or None if the fields say that it has not been measured."""
        return None if self.fields.get("quality", self.quality) is None else self.quality


def encode_entry(entry: CacheEntry) -> bytes:
    """Header, lengths of the parts, fields as JSON, parts."""
    fields = orjson.dumps(dict(entry.fields))
    lengths = b"".join(_LENGTH.pack(len(part)) for part in entry.parts)
    body = b"".join([lengths, fields, *entry.parts])
    header = _HEADER.pack(_MAGIC, 0, entry.quality, len(fields), len(entry.parts))
    checksum = zlib.crc32(body, zlib.crc32(header[_CHECKSUM_START:]))
    return _HEADER.pack(_MAGIC, checksum, entry.quality, len(fields), len(entry.parts)) + body


def decode_entry(data: bytes) -> CacheEntry | None:
    """The entry, or None if the bytes are not the output of `encode_entry`."""
    if len(data) < _HEADER.size:
        return None
    magic, checksum, quality, fields_size, part_count = _HEADER.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(memoryview(data)[_CHECKSUM_START:]) != checksum:
        return None
    offset = _HEADER.size + part_count * _LENGTH.size
    if offset + fields_size > len(data):
        return None
    lengths = [_LENGTH.unpack_from(data, _HEADER.size + i * _LENGTH.size)[0] for i in range(part_count)]
    if offset + fields_size + sum(lengths) != len(data):
        return None
    try:
        fields = orjson.loads(memoryview(data)[offset : offset + fields_size])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    offset, parts = offset + fields_size, []
    for length in lengths:
        parts.append(data[offset : offset + length])
        offset += length
    return CacheEntry(quality, fields, tuple(parts))
