"""Compressed bodies (`content-encoding`, RFC 9110 section 8.4), decompressed piece by piece."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable

from foveate.core.errors import BadRequest, BodyTooLarge, UnsupportedEncoding
from foveate.core.settings import MIB

ENCODINGS = ("gzip", "deflate")
PIECE_BYTES = 2**18
"""Largest piece of decompressed bytes. The caller counts each piece before it asks for the next one, so that
a decompression bomb ends at the limit for bodies."""
MAX_RATIO, FREE_BYTES = 20, 32 * MIB
"""Bytes that a compressed byte may become at most, in bodies that become larger than `FREE_BYTES`. Clips are
compressed already, so that only a bomb becomes so large, and it would be written to disk."""
MAX_MEMBERS = 10_000
"""Most members of a body in gzip. Each one takes as long to set up as many bytes; bgzip makes one every
64 kB."""
GZIP_FIRST_BYTE = 0x1F
_ALIASES = {"x-gzip": "gzip"}
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's argument for each encoding: with the header of gzip (RFC 1952), and with zlib's own (RFC 1950)."""


def read_encoding(values: Iterable[str]) -> str:
    """The encoding that the lines of `content-encoding` name; empty for none. Raises UnsupportedEncoding."""
    names = [name.strip().lower() for value in values for name in value.split(",")]
    names = [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    if not names:
        return ""
    if len(names) > 1 or names[0] not in ENCODINGS:
        raise UnsupportedEncoding(
            f"content-encoding {', '.join(names)[:60]!r} is not supported; send the body as it is, or"
            " compressed once with gzip or deflate"
        )
    return names[0]


async def decompress(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The decompressed bytes, in pieces of at most `PIECE_BYTES`.

    encoding: one of `ENCODINGS`. Runs zlib on threads. Raises BadRequest for bytes that are damaged,
    incomplete, or followed by others, and BodyTooLarge for those that expand too much.
    """
    decoder, received, total = _Decoder(encoding), 0, 0
    async for chunk in chunks:
        decoder.rest = chunk
        received += len(chunk)
        while decoder.rest:
            piece = await asyncio.to_thread(decoder.next_piece)
            total += len(piece)
            if total > max(FREE_BYTES, MAX_RATIO * received):
                raise BodyTooLarge(f"the body expands to over {MAX_RATIO} times its compressed size")
            yield piece
    if received:
        yield decoder.flush()


class _Decoder:
    """The state of one compressed body. gzip may have several members in a row (RFC 1952, section 2.2)."""

    def __init__(self, encoding: str) -> None:
        self.encoding, self.rest = encoding, b""
        """Compressed bytes that have arrived and are not decompressed yet."""
        self._member: zlib._Decompress | None = None
        self._members = 0

    def next_piece(self) -> bytes:
        """Decompress `rest` up to `PIECE_BYTES`; `rest` is what is left of it. Raises BadRequest."""
        piece = bytearray()
        while self.rest and len(piece) < PIECE_BYTES:
            if self._member is None or self._member.eof:
                self._member = self._next_member()
            try:
                piece += self._member.decompress(self.rest, PIECE_BYTES - len(piece))
            except zlib.error:
                raise BadRequest(
                    f"the body is not valid {self.encoding} data, as its content-encoding says"
                ) from None
            self.rest = self._member.unused_data or self._member.unconsumed_tail
        return bytes(piece)

    def _next_member(self) -> "zlib._Decompress":
        """The state of the member, or of the only data, that begins with the first byte of `rest`."""
        self._members += 1
        if self._members > 1 and (self.encoding != "gzip" or self.rest[0] != GZIP_FIRST_BYTE):
            raise BadRequest(f"the body goes on after the end of its {self.encoding} data")
        if self._members > MAX_MEMBERS:
            raise BadRequest(f"the body has over {MAX_MEMBERS} gzip members; compress it as one")
        # Some clients send deflate without zlib's header, whose low half byte is always 8.
        bare = self.encoding == "deflate" and self.rest[0] & 0x0F != zlib.DEFLATED
        return zlib.decompressobj(-zlib.MAX_WBITS if bare else _WINDOW_BITS[self.encoding])

    def flush(self) -> bytes:
        """At most the rest of a few matches: the input is used up. Raises BadRequest if data are missing."""
        last = self._member.flush() if self._member is not None else b""
        if self._member is None or not self._member.eof:
            raise BadRequest(f"the {self.encoding} data of the body is incomplete")
        return last
