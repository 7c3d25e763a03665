"""Bodies on disk: limits, clean-up, and writes off the event loop."""

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from foveate.core.errors import BadRequest, BodyTooLarge, ClientGone, Overloaded, Unavailable
from foveate.gateway import spool
from foveate.gateway.body_formats.form import FormParser
from foveate.gateway.limits import AdmissionLimiter, SpoolBudget
from foveate.gateway.spool import HEAD_BYTES, MEMORY_BYTES, WRITE_BYTES, spool_body

CHUNK = 2**16
MIB = 2**20

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, to check that none is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def stream(
    chunks: Iterable[bytes], disconnects: bool = False, stalls: asyncio.Event | None = None
) -> AsyncIterator[bytes]:
    """The body of a request that arrives in these chunks. Then its client may disconnect or stall."""
    rest = iter(chunks)

    async def receive() -> Message:
        chunk = next(rest, None)
        if chunk is not None:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if stalls:
            await stalls.wait()
        return {"type": "http.disconnect"} if disconnects else {"type": "http.request", "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive).stream()


def chunks_of(size: int) -> list[bytes]:
    """Chunks of this many bytes in total, all different."""
    whole = b"".join(number.to_bytes(4, "big") for number in range(-(-size // 4)))[:size]
    return [whole[at : at + CHUNK] for at in range(0, size, CHUNK)]


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def limits(max_body: int = 20 * MIB, max_disk: int = 64 * MIB) -> tuple[AdmissionLimiter, SpoolBudget]:
    return AdmissionLimiter(8, 64 * MIB, 20 * MIB), SpoolBudget(max_disk, max_body)


@pytest.mark.parametrize("size", [0, 1, CHUNK + 1, MEMORY_BYTES])
async def test_a_small_body_stays_in_memory_and_counts_in_the_limiter(size: int, folder: Path) -> None:
    limiter, budget = limits()
    with limiter.admit() as permit:
        async with spool_body(stream(chunks_of(size)), str(size), permit, budget) as body:
            assert body == b"".join(chunks_of(size))
            assert (limiter.bytes, budget.bytes) == (size, 0)
            assert not left_in(folder)
    assert limiter.bytes == 0


@pytest.mark.parametrize("size", [MEMORY_BYTES + 1, MEMORY_BYTES + WRITE_BYTES, 3 * MEMORY_BYTES + 12_345])
async def test_a_large_body_is_in_a_file_until_the_end(size: int, folder: Path) -> None:
    limiter, budget = limits()
    with limiter.admit() as permit:
        async with spool_body(stream(chunks_of(size)), "0", permit, budget) as body:
            assert isinstance(body, Path)
            assert body.read_bytes() == b"".join(chunks_of(size))
            assert body.stat().st_mode & 0o077 == 0  # other users cannot read it
            assert budget.bytes == size
            assert limiter.bytes <= MEMORY_BYTES
    assert not left_in(folder)
    assert (limiter.bytes, budget.bytes) == (0, 0)


async def test_a_body_announced_too_large_is_refused_unread() -> None:
    limiter, budget = limits(max_body=8 * MIB)

    def never() -> Iterable[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with limiter.admit() as permit, pytest.raises(BodyTooLarge):
        async with spool_body(stream(never()), str(8 * MIB + 1), permit, budget):
            pass


async def test_a_body_that_grows_too_large_is_refused_and_removed(folder: Path) -> None:
    limiter, budget = limits(max_body=8 * MIB)
    with limiter.admit() as permit, pytest.raises(BodyTooLarge):
        async with spool_body(stream(chunks_of(8 * MIB + 1)), "0", permit, budget):
            pass
    assert not left_in(folder)
    assert budget.bytes == 0


@pytest.mark.parametrize("announced", ["-1", "1e3", "", "²", "9" * 20])
async def test_an_invalid_content_length_is_refused(announced: str) -> None:
    limiter, budget = limits()
    with limiter.admit() as permit, pytest.raises(BadRequest):
        async with spool_body(stream([]), announced, permit, budget):
            pass


async def test_all_bodies_share_one_budget(folder: Path) -> None:
    limiter, budget = limits(max_disk=12 * MIB)
    with limiter.admit() as first, limiter.admit() as second:
        async with spool_body(stream(chunks_of(8 * MIB)), "0", first, budget):
            with pytest.raises(Overloaded):
                async with spool_body(stream(chunks_of(8 * MIB)), "0", second, budget):
                    pass
            assert budget.bytes == 8 * MIB
            assert len(left_in(folder)) == 1
        async with spool_body(stream(chunks_of(8 * MIB)), "0", second, budget) as body:
            assert isinstance(body, Path)


@pytest.mark.parametrize("size", [CHUNK, 2 * MEMORY_BYTES])
async def test_no_file_is_left_after_a_disconnect(size: int, folder: Path) -> None:
    limiter, budget = limits()
    with limiter.admit() as permit, pytest.raises(ClientGone):
        async with spool_body(stream(chunks_of(size), disconnects=True), "0", permit, budget):
            pass
    assert not left_in(folder)
    assert budget.bytes == 0


async def test_no_file_is_left_after_a_timeout(folder: Path) -> None:
    limiter, budget = limits()
    with limiter.admit() as permit, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            async with spool_body(
                stream(chunks_of(2 * MEMORY_BYTES), stalls=asyncio.Event()), "0", permit, budget
            ):
                pass
    assert not left_in(folder)
    assert budget.bytes == 0


async def test_a_write_after_the_removal_does_not_create_the_file_again(folder: Path) -> None:
    path = spool.new_file()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        spool.append(path, [b"late"])
    assert not left_in(folder)


async def test_a_full_disk_is_reported_as_unavailable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def full(path: Path, chunks: Iterable[bytes]) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(spool, "append", full)
    limiter, budget = limits()
    with limiter.admit() as permit, pytest.raises(Unavailable):
        async with spool_body(stream(chunks_of(2 * MEMORY_BYTES)), "0", permit, budget):
            pass
    assert not left_in(folder)
    assert budget.bytes == 0


CLIP = b"\0\0\0\x20ftypisom"
"""The first bytes of an MP4."""


def form_of(file: bytes) -> bytes:
    """A multipart form with the boundary b and this file."""
    return b"--b\r\ncontent-disposition: form-data; name=file\r\n\r\n" + file + b"\r\n--b--\r\n"


def cut(body: bytes) -> list[bytes]:
    return [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]


@pytest.mark.parametrize("in_form", [False, True])
@pytest.mark.parametrize("announces", [False, True])
async def test_a_clip_of_any_type_is_spooled_up_to_the_limit_for_clips(
    in_form: bool, announces: bool, folder: Path
) -> None:
    file = CLIP + bytes(21 * MIB)
    limiter, budget = limits(max_body=22 * MIB)
    body = form_of(file) if in_form else file
    form = FormParser("multipart/form-data; boundary=b") if in_form else None
    length = str(len(body)) if announces else "0"
    with limiter.admit() as permit:
        async with spool_body(stream(cut(body)), length, permit, budget, form, clip=False) as media:
            assert isinstance(media, Path)
            assert media.read_bytes() == file
            assert budget.bytes == len(file)
            assert limiter.bytes <= MEMORY_BYTES
    assert not left_in(folder)
    assert (limiter.bytes, budget.bytes) == (0, 0)


async def test_a_small_clip_is_not_bound_by_a_lower_limit_for_images() -> None:
    limiter, budget = AdmissionLimiter(8, 64 * MIB, MIB), SpoolBudget(64 * MIB, 20 * MIB)
    with limiter.admit() as permit:
        async with spool_body(stream(cut(CLIP + bytes(2 * MIB))), "0", permit, budget) as media:
            assert isinstance(media, Path)


@pytest.mark.parametrize("in_form", [False, True])
@pytest.mark.parametrize("size", [1, HEAD_BYTES - 1, HEAD_BYTES, 5 * MIB])
async def test_an_image_stays_in_memory(size: int, in_form: bool, folder: Path) -> None:
    file = (b"\xff\xd8\xff" * size)[:size]
    limiter, budget = limits()
    body = form_of(file) if in_form else file
    form = FormParser("multipart/form-data; boundary=b") if in_form else None
    with limiter.admit() as permit:
        async with spool_body(stream(cut(body)), str(len(body)), permit, budget, form, clip=False) as media:
            assert media == file
            assert (limiter.bytes, budget.bytes) == (size if size >= HEAD_BYTES else limiter.bytes, 0)
    assert not left_in(folder)
    assert limiter.bytes == 0


@pytest.mark.parametrize("announces", [False, True])
async def test_an_image_over_the_limit_for_images_is_refused(announces: bool, folder: Path) -> None:
    limiter, budget = limits(max_body=64 * MIB)
    read: list[int] = []

    def image() -> Iterable[bytes]:
        for _ in range(21 * MIB // CHUNK):
            read.append(CHUNK)
            yield b"\xff" * CHUNK

    length = str(21 * MIB) if announces else "0"
    with limiter.admit() as permit, pytest.raises(BodyTooLarge, match="content-type: video/mp4, or in a"):
        async with spool_body(stream(image()), length, permit, budget, clip=False):
            pass
    assert len(read) == 1 if announces else sum(read) > 20 * MIB
    assert not left_in(folder)


async def test_a_form_announced_larger_than_any_clip_is_refused_unread() -> None:
    limiter, budget = limits(max_body=22 * MIB)
    form = FormParser("multipart/form-data; boundary=b")
    with limiter.admit() as permit, pytest.raises(BodyTooLarge, match="the clip is over"):
        async with spool_body(stream([]), str(23 * MIB), permit, budget, form, clip=False):
            pass
