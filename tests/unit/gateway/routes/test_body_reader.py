"""Bodies of task requests: raw, multipart and JSON; their limits in bytes and time."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.gateway import assert_problem, serving_fakes

pytestmark = pytest.mark.anyio


async def test_raw_multipart_and_json_bodies_carry_the_same_bytes() -> None:
    data = bytes(range(256))
    encoded = base64.b64encode(data).decode()
    async with serving_fakes() as gateway:
        raw = await gateway.post("/classify", data)
        form = await gateway.client.post("/classify", files={"file": ("a.jpg", data, "image/jpeg")})
        plain = await gateway.client.post("/classify", json={"data": encoded})
        uri = await gateway.client.post("/classify", json={"data": f"data:image/png;base64,{encoded}"})
        untyped = await gateway.client.post("/classify", content=data)
    assert [r.status_code for r in (raw, form, plain, uri, untyped)] == [200] * 5
    assert gateway.runner.batches == [[data]] * 5


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("text/plain", b"hello", 415, "text/plain"),
        ("audio/mpeg", b"....", 415, "audio/mpeg"),
        ("application/x-www-form-urlencoded", b"\xff\xd8", 415, "content-type: image/jpeg"),
        ("image/jpeg", b"", 400, "empty"),
        ("application/json", b"{", 400, "JSON"),
        ("application/json", b"[1]", 400, "object"),
        ("application/json", b"{}", 400, "data"),
        ("application/json", b'{"data": 3}', 400, "data"),
        ("application/json", b'{"data": "***"}', 400, "base64"),
        ("application/json", b'{"data": ""}', 400, "empty"),
        ("application/json", b'{"url": "http://localhost/"}', 400, "URL"),
        ("multipart/form-data", b"x", 400, "multipart"),
        ("multipart/form-data; boundary=b", b"nonsense", 400, ""),
    ],
)  # fmt: skip
async def test_body_without_media_is_a_4xx(kind: str, body: bytes, status: int, words: str) -> None:
    async with serving_fakes() as gateway:
        assert_problem(await gateway.post("/classify", body, content_type=kind), status, words)
        assert gateway.counted("invalid") == 1
        assert gateway.app.state.limiter.items == gateway.app.state.limiter.bytes == 0


async def test_body_over_the_limit_is_a_413_with_and_without_content_length() -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    async with serving_fakes(max_body_bytes=1000) as gateway:
        assert_problem(await gateway.post("/classify", b"x" * 1001), 413, "1000 bytes")
        chunked = await gateway.post("/classify", stream())
        assert_problem(chunked, 413, "1000 bytes")
        assert (await gateway.post("/classify", b"x" * 1000)).status_code == 200
        assert gateway.app.state.limiter.bytes == 0


async def test_body_that_does_not_arrive_in_time_is_a_408() -> None:
    async def never_ending() -> AsyncIterator[bytes]:
        yield b"half an im"
        await asyncio.Event().wait()

    async with serving_fakes(body_timeout_s=0.03) as gateway:
        assert_problem(await gateway.post("/classify", never_ending()), 408)
        assert gateway.app.state.limiter.items == gateway.app.state.limiter.bytes == 0


async def test_content_length_alone_takes_no_share_of_the_byte_limit() -> None:
    async def one_byte() -> AsyncIterator[bytes]:
        yield b"x"
        arrived.set()
        await asyncio.Event().wait()

    arrived = asyncio.Event()
    async with serving_fakes(in_flight_bytes=1000, max_body_bytes=1000) as gateway:
        slow = asyncio.create_task(gateway.post("/classify", one_byte(), content_length="1000"))
        await arrived.wait()
        assert (await gateway.post("/classify", b"x" * 900)).status_code == 200
        slow.cancel()


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "no-such-codec"])
async def test_charset_of_a_multipart_body_is_ignored(charset: str) -> None:
    part = b'content-disposition: form-data; name="f0-"\r\n\r\n' + b"b" * 4000
    body = b"--b\r\n" + part + b"\r\n--b--\r\n"
    content_type = f"multipart/form-data; boundary=b; charset={charset}"
    async with serving_fakes() as gateway:
        assert_problem(await gateway.post("/classify", body, content_type=content_type), 400, "file")


async def test_json_body_with_too_many_parts_is_refused_before_parsing() -> None:
    async with serving_fakes() as gateway:
        body = b"[" + b"{}," * 2000 + b"{}]"
        refused = await gateway.post("/classify", body, content_type="application/json")
        assert_problem(refused, 400, "commas")


@pytest.mark.parametrize("kind", ["", "application/octet-stream", "binary/octet-stream", "image/jpeg"])
@pytest.mark.parametrize("length", ["0", None])
async def test_empty_body_of_any_type_is_a_400(kind: str, length: str | None) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    async with serving_fakes() as gateway:
        headers: dict[str, Any] = {"content_type": kind} | ({"content_length": length} if length else {})
        body = b"" if length else nothing()
        assert_problem(await gateway.post("/classify", body, **headers), 400, "the body is empty")


async def test_forms_and_untyped_bodies_of_images_keep_the_limit_for_images() -> None:
    async with serving_fakes(max_body_bytes=10_000) as gateway:
        form = await gateway.client.post("/classify", files={"file": ("a.jpg", b"x" * 10_001)})
        untyped = await gateway.client.post("/classify", content=b"x" * 10_001)
        for refused in (form, untyped):
            assert_problem(refused, 413, "10000 bytes")
        largest = await gateway.client.post("/classify", files={"file": ("a.jpg", b"x" * 10_000)})
        assert largest.status_code == 200
        assert gateway.app.state.limiter.bytes == 0


async def test_body_announced_over_the_limit_for_images_has_the_time_of_clips() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"\0\0\0\x20ftypisom" + bytes(4100)
        await asyncio.sleep(0.2)
        yield bytes(4100)

    async with serving_fakes(max_body_bytes=10_000, body_timeout_s=0.05, video_body_timeout_s=60) as gateway:
        answered = await gateway.post("/classify", slow(), content_type="", content_length="12012")
        assert answered.status_code == 200, answered.text
        late = await gateway.post("/classify", slow(), content_type="", content_length="9000")
        assert_problem(late, 408)
