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
    decoder, received, total = None, 0, 0
    async for chunk in chunks:
        rest = chunk
        received += len(chunk)
        while rest:
            decoder = decoder or _decoder(rest, encoding)
            piece = await asyncio.to_thread(_piece, decoder, rest, encoding)
            total += len(piece)
            if total > max(FREE_BYTES, MAX_RATIO * received):
                raise BodyTooLarge(f"the body expands to over {MAX_RATIO} times its compressed size")
            yield piece
            if decoder.unused_data:
                raise BadRequest(f"the body goes on after the end of its {encoding} data")
            rest = decoder.unconsumed_tail
    if decoder is not None:
        yield decoder.flush()  # at most the rest of a few matches: the input is used up
        if not decoder.eof:
            raise BadRequest(f"the {encoding} data of the body is incomplete")


def _decoder(first: bytes, encoding: str) -> "zlib._Decompress":
    # Some clients send deflate without zlib's header, whose low half byte is always 8.
    bare = encoding == "deflate" and first[0] & 0x0F != zlib.DEFLATED
    return zlib.decompressobj(-zlib.MAX_WBITS if bare else _WINDOW_BITS[encoding])


def _piece(decoder: "zlib._Decompress", data: bytes, encoding: str) -> bytes:
    try:
        return decoder.decompress(data, PIECE_BYTES)
    except zlib.error:
        raise BadRequest(f"the body is not valid {encoding} data, as its content-encoding says") from None
