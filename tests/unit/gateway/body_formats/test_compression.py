"""Compressed bodies: encodings, damaged and incomplete data, decompression bombs."""

import gzip
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import pytest

from foveate.core.errors import BadRequest, BodyTooLarge, UnsupportedEncoding
from foveate.gateway.body import read_body
from foveate.gateway.body_formats.compression import (
    FREE_BYTES,
    MAX_MEMBERS,
    PIECE_BYTES,
    decompress,
    read_encoding,
)
from foveate.gateway.limits import AdmissionLimiter
from tests.support.gateway import assert_problem, serving_fakes

pytestmark = pytest.mark.anyio
DATA = bytes(range(256)) * 5000
MIB = 2**20


def gzipped(data: bytes) -> bytes:
    """The data in gzip, the same at any time."""
    return gzip.compress(data, mtime=0)


def raw_deflate(data: bytes) -> bytes:
    """The data in deflate without the header and the checksum of zlib."""
    return zlib.compress(data)[2:-4]


COMPRESSED = {
    ("gzip", "gzip"): gzipped(DATA),
    ("deflate", "zlib"): zlib.compress(DATA),
    ("deflate", "raw"): raw_deflate(DATA),
}


async def chunks(body: bytes, size: int = 2**16) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


async def decompressed(body: bytes, encoding: str, size: int = 2**16) -> bytes:
    """All pieces together."""
    pieces = [piece async for piece in decompress(chunks(body, size), encoding)]
    assert max(map(len, pieces), default=0) <= PIECE_BYTES
    return b"".join(pieces)


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        ([""], ""), (["identity"], ""), (["gzip"], "gzip"), ([" GZIP "], "gzip"), (["x-gzip"], "gzip"),
        (["deflate"], "deflate"), (["identity, gzip"], "gzip"), (["identity", "gzip"], "gzip"),
    ],
)  # fmt: skip
def test_supported_encodings_are_named(values: list[str], encoding: str) -> None:
    assert read_encoding(values) == encoding


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (["br"], "'br'"),
        (["zstd"], "'zstd'"),
        (["gzip, br"], "'gzip, br'"),
        (["gzip", "gzip"], "'gzip, gzip'"),
    ],
)
def test_other_encodings_are_refused(values: list[str], named: str) -> None:
    with pytest.raises(UnsupportedEncoding) as refused:
        read_encoding(values)
    assert named in refused.value.detail
    assert "gzip or deflate" in refused.value.detail


@pytest.mark.parametrize("key", COMPRESSED)
@pytest.mark.parametrize("size", [1000, 2**16, 2**30])
async def test_bodies_are_decompressed_in_bounded_pieces(key: tuple[str, str], size: int) -> None:
    assert await decompressed(COMPRESSED[key], key[0], size) == DATA


async def test_single_bytes_and_no_bytes_are_decompressed() -> None:
    assert await decompressed(gzipped(b"abc"), "gzip", 1) == b"abc"
    assert await decompressed(gzipped(b""), "gzip") == b""
    assert await decompressed(b"", "gzip") == b""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff\xd8\xff not compressed", "not valid gzip"),
        (gzipped(DATA)[:-20], "incomplete"),
        (gzipped(DATA)[:-8], "incomplete"),
        (gzipped(DATA)[:5], "incomplete"),
        (gzipped(DATA)[:-8] + bytes(8), "not valid gzip"),
        (gzipped(DATA) + b"x", "goes on after the end"),
        (gzipped(DATA) + b"\x1fx", "not valid gzip"),
        (gzipped(DATA) + gzipped(DATA)[:-5], "incomplete"),
        (gzipped(DATA) + gzipped(b"")[:1], "incomplete"),
        (zlib.compress(DATA), "not valid gzip"),
    ],
)
@pytest.mark.parametrize("size", [2**10, 2**30])
async def test_damaged_data_is_refused(body: bytes, words: str, size: int) -> None:
    with pytest.raises(BadRequest, match=words):
        await decompressed(body, "gzip", size)


@pytest.mark.parametrize("size", [1, 7, 2**10, 2**30])
async def test_gzip_members_follow_each_other(size: int) -> None:
    """As `cat a.gz b.gz`, pigz and bgzip make them (RFC 1952, section 2.2)."""
    members = gzipped(b"") + gzipped(b"abc") + gzipped(b"") + gzipped(b"def")
    assert await decompressed(members, "gzip", size) == b"abcdef"
    if size > 1000:
        assert await decompressed(gzipped(DATA) + gzipped(DATA), "gzip", size) == DATA + DATA


async def test_deflate_data_have_no_members() -> None:
    for one in (zlib.compress(DATA), raw_deflate(DATA)):
        with pytest.raises(BadRequest, match="goes on after the end of its deflate data"):
            await decompressed(one + one, "deflate")


async def test_members_are_bounded_in_number_and_together_in_bytes() -> None:
    assert await decompressed(gzipped(b"") * MAX_MEMBERS, "gzip") == b""
    with pytest.raises(BadRequest, match="over 10000 gzip members"):
        await decompressed(gzipped(b"") * (MAX_MEMBERS + 1), "gzip")
    with pytest.raises(BodyTooLarge, match="over 20 times"):
        await decompressed(gzipped(bytes(4 * MIB)) * 16, "gzip")


async def test_a_bomb_ends_at_the_limit_for_bodies() -> None:
    bomb = gzipped(bytes(256 * MIB))
    assert len(bomb) < 256 * MIB / 900
    limiter = AdmissionLimiter(8, 64 * MIB, 4 * MIB)
    tracemalloc.start()
    try:
        with limiter.admit() as permit, pytest.raises(BodyTooLarge):
            await read_body(decompress(chunks(bomb), "gzip"), str(len(bomb)), permit)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    assert limiter.bytes == 0


async def test_a_bomb_is_not_written_to_disk_up_to_the_limit_for_clips() -> None:
    seen = 0
    with pytest.raises(BodyTooLarge, match="over 20 times its compressed size"):
        async for piece in decompress(chunks(gzipped(bytes(64 * MIB))), "gzip"):
            seen += len(piece)
    assert seen <= FREE_BYTES


async def test_a_large_body_that_was_hardly_compressible_passes() -> None:
    body = random.Random(0).randbytes(2 * MIB) + bytes(35 * MIB)
    assert sum([len(piece) async for piece in decompress(chunks(gzipped(body)), "gzip")]) == len(body)


@pytest.mark.parametrize("kind", ["image/jpeg", "", "application/octet-stream"])
async def test_requests_may_be_compressed(kind: str) -> None:
    async with serving_fakes() as gateway:
        members = gzipped(b"im") + gzipped(b"age")
        for encoding, body in (
            ("gzip", gzipped(b"image")), ("gzip", members), ("deflate", zlib.compress(b"image"))
        ):  # fmt: skip
            answer = await gateway.post("/classify", body, content_type=kind, content_encoding=encoding)
            assert answer.status_code == 200
        plain = await gateway.post("/classify", b"image", content_type=kind, content_encoding="identity")
        assert plain.status_code == 200
    assert gateway.runner.batches == [[b"image"]] * 4


async def test_forms_and_json_may_be_compressed() -> None:
    form = b"--b\r\ncontent-disposition: form-data; name=file\r\n\r\nimage\r\n--b--"
    async with serving_fakes() as gateway:
        for kind, body in (
            ("application/json", b'{"data": "aW1hZ2U="}'),
            ("multipart/form-data; boundary=b", form),
        ):
            compressed = gzipped(body)
            answer = await gateway.post("/classify", compressed, content_type=kind, content_encoding="gzip")
            assert answer.status_code == 200
    assert gateway.runner.batches == [[b"image"]] * 2


async def test_other_encodings_are_a_415_with_the_supported_ones() -> None:
    async with serving_fakes() as gateway:
        refused = await gateway.post("/classify", content_encoding="br")
        assert_problem(refused, 415, "content-encoding 'br'")
        assert refused.headers["accept-encoding"] == "gzip, deflate"
        assert refused.json()["type"] == "urn:foveate:problem:unsupported-encoding"
        assert "accept-encoding" not in (await gateway.post("/classify", content_type="text/html")).headers


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (gzipped(b""), 400, "empty"),
        (b"image", 400, "not valid gzip"),
        (gzipped(b"image")[:-3], 400, "incomplete"),
        (gzipped(bytes(20_000)), 413, "10000 bytes"),
    ],
)
@pytest.mark.parametrize("kind", ["image/jpeg", "video/mp4", ""])
async def test_other_compressed_bodies_get_a_short_problem(
    kind: str, body: bytes, status: int, words: str
) -> None:
    async with serving_fakes(max_body_bytes=10_000, max_video_bytes=10_000) as gateway:
        refused = await gateway.post("/classify", body, content_type=kind, content_encoding="gzip")
        assert_problem(refused, status, words)
        assert gateway.app.state.limiter.bytes == 0
