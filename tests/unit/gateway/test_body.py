"""Request bodies: content types, lengths, multipart and JSON."""

import base64
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from starlette.requests import Request
from starlette.types import Message

from foveate.core.errors import BadRequest, BodyTooLarge, ClientGone, UnsupportedMedia
from foveate.gateway.body import (
    MAX_JSON_TOKENS,
    check_type,
    from_json,
    from_multipart,
    json_fields,
    media_type,
    parse_length,
    read_body,
)
from foveate.gateway.limits import AdmissionLimiter


def request(chunks: Sequence[bytes], disconnects: bool = False) -> Request:
    """A request whose body arrives in these chunks."""
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": disconnects or chunk is not chunks[-1]}
        for chunk in chunks
    ]
    messages += [{"type": "http.disconnect"}] * disconnects

    async def receive() -> Message:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


@pytest.mark.anyio
async def test_the_body_is_joined_and_counted_until_the_request_ends() -> None:
    limiter = AdmissionLimiter(8, 1000, 100)
    with limiter.admit() as permit:
        assert await read_body(request([b"ab", b"c", b"def"]), "6", permit) == b"abcdef"
        assert limiter.bytes == permit.bytes == 6
    assert limiter.bytes == 0


@pytest.mark.anyio
async def test_a_body_announced_too_large_is_refused_unread() -> None:
    with AdmissionLimiter(8, 1000, 100).admit() as permit:
        with pytest.raises(BodyTooLarge, match="over 100 bytes"):
            await read_body(request([]), "101", permit)
        assert permit.bytes == 0


@pytest.mark.anyio
async def test_a_body_longer_than_announced_is_refused() -> None:
    with AdmissionLimiter(8, 1000, 100).admit() as permit, pytest.raises(BodyTooLarge):
        await read_body(request([b"x" * 60, b"y" * 60]), "60", permit)


@pytest.mark.anyio
async def test_a_disconnect_ends_the_request() -> None:
    with AdmissionLimiter(8, 1000, 100).admit() as permit, pytest.raises(ClientGone):
        await read_body(request([b"x"], disconnects=True), "9", permit)


@pytest.mark.parametrize("length", ["", "-1", "1.5", "1e3", " 1", "²", "9" * 20])
def test_an_invalid_content_length_is_refused(length: str) -> None:
    with pytest.raises(BadRequest, match="content-length"):
        parse_length(length)


def test_content_length_is_a_number_of_bytes() -> None:
    assert (parse_length("0"), parse_length("0012")) == (0, 12)


def test_the_media_type_has_no_parameters_and_is_lower_case() -> None:
    assert media_type("Image/JPEG; q=1") == "image/jpeg"
    assert media_type("") == ""


@pytest.mark.parametrize(
    "kind",
    ["image/x-new", "video/mp4", "", "application/octet-stream", "multipart/form-data", "application/json"],
)
def test_supported_content_types_pass(kind: str) -> None:
    check_type(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text/html", "content-type text/html is not supported"),
        ("application/x-www-form-urlencoded", "content-type: image/jpeg"),
        ("x" * 500, "x" * 60 + " is not supported"),
    ],
)
def test_other_content_types_are_refused_with_an_alternative(kind: str, words: str) -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        check_type(kind)
    assert words in refused.value.detail


def multipart(name: str, filename: str = "; filename=a") -> bytes:
    header = f'--b\r\ncontent-disposition: form-data; name="{name}"{filename}\r\n\r\n'
    return header.encode() + b"\xff\xd8bytes\r\n--b--\r\n"


@pytest.mark.anyio
async def test_multipart_gives_the_bytes_of_the_field_file() -> None:
    assert await from_multipart("multipart/form-data; boundary=b", multipart("file")) == b"\xff\xd8bytes"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data; boundary=b", multipart("picture"), "'file'"),
        ("multipart/form-data; boundary=b", multipart("file", ""), "'file'"),
        ("multipart/form-data; boundary=b", b"--c\r\n", "does not parse"),
        ("multipart/form-data", multipart("file"), ""),
    ],
)
async def test_other_multipart_bodies_are_refused(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await from_multipart(content_type, body)
    assert words in refused.value.detail


def test_json_gives_the_bytes_behind_data() -> None:
    body = orjson.dumps({"data": base64.b64encode(b"image").decode(), "points": [[1, 2]]})
    assert from_json(body) == b"image"
    assert json_fields(body)["points"] == [[1, 2]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "an object"),
        ({}, "'data'"),
        ({"data": 5}, "'data'"),
        ({"url": "http://example.org/a.jpg"}, "does not fetch URLs"),
        ({"data": "***"}, "not valid base64"),
    ],
)
def test_other_json_bodies_are_refused(fields: Any, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        from_json(orjson.dumps(fields))
    assert words in refused.value.detail


def test_json_of_too_many_parts_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BadRequest, match="over 1000 objects, arrays and commas"):
        json_fields(b"[" * (MAX_JSON_TOKENS + 1))
    with pytest.raises(BadRequest, match="not valid JSON"):
        json_fields(b"[" * MAX_JSON_TOKENS)
