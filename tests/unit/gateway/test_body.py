"""Request bodies in memory: content types, lengths and bytes."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from starlette.requests import Request
from starlette.types import Message

from foveate.core.errors import BadRequest, BodyTooLarge, BodyTooSlow, ClientGone, UnsupportedMedia
from foveate.gateway import body
from foveate.gateway.body import (
    check_type,
    holds_options,
    is_json,
    media_type,
    parse_length,
    read_body,
    without_stalls,
)
from foveate.gateway.limits import AdmissionLimiter


def stream(chunks: Sequence[bytes], disconnects: bool = False) -> AsyncIterator[bytes]:
    """The body of a request that arrives in these chunks."""
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": disconnects or chunk is not chunks[-1]}
        for chunk in chunks
    ]
    messages += [{"type": "http.disconnect"}] * disconnects

    async def receive() -> Message:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive).stream()


@pytest.mark.anyio
async def test_the_body_is_joined_and_counted_until_the_request_ends() -> None:
    limiter = AdmissionLimiter(8, 1000, 100)
    with limiter.admit() as permit:
        assert await read_body(stream([b"ab", b"c", b"def"]), "6", permit) == b"abcdef"
        assert limiter.bytes == permit.bytes == 6
    assert limiter.bytes == 0


@pytest.mark.anyio
async def test_a_body_announced_too_large_is_refused_unread() -> None:
    with AdmissionLimiter(8, 1000, 100).admit() as permit:
        with pytest.raises(BodyTooLarge, match="over 100 bytes"):
            await read_body(stream([]), "101", permit)
        assert permit.bytes == 0


@pytest.mark.anyio
async def test_a_body_longer_than_announced_is_refused() -> None:
    with AdmissionLimiter(8, 1000, 100).admit() as permit, pytest.raises(BodyTooLarge):
        await read_body(stream([b"x" * 60, b"y" * 60]), "60", permit)


@pytest.mark.anyio
async def test_a_disconnect_ends_the_request() -> None:
    with AdmissionLimiter(8, 1000, 100).admit() as permit, pytest.raises(ClientGone):
        await read_body(stream([b"x"], disconnects=True), "9", permit)


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
    [
        "image/x-new",
        "video/mp4",
        "",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
        "application/vnd.api+json",
    ],
)
def test_supported_content_types_pass(kind: str) -> None:
    check_type(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text/html", "content-type text/html is not supported"),
        ("application/x-www-form-urlencoded", "content-type: image/jpeg"),
        ("application/x-www-form-urlencoded", "content-type: application/json"),
        ("text/json", "JSON"),
        ("multipart/mixed", "multipart/form-data"),
        ("x" * 500, "x" * 60 + " is not supported"),
    ],
)
def test_other_content_types_are_refused_with_an_alternative(kind: str, words: str) -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        check_type(kind)
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("kind", "json", "options"),
    [
        ("application/json", True, True),
        ("application/ld+json", True, True),
        ("multipart/form-data", False, True),
        ("image/jpeg", False, False),
        ("image/x+json", False, False),
        ("", False, False),
    ],
)
def test_forms_and_json_may_hold_options(kind: str, json: bool, options: bool) -> None:
    assert (is_json(kind), holds_options(kind)) == (json, options)


@pytest.mark.anyio
async def test_a_body_that_stalls_is_ended_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "STALL_S", 0.5)

    async def chunks(pause_s: float) -> AsyncIterator[bytes]:
        for part in (b"a", b"b", b"c"):
            await asyncio.sleep(pause_s)
            yield part

    assert [part async for part in without_stalls(chunks(0.2))] == [b"a", b"b", b"c"]
    with pytest.raises(BodyTooSlow, match=r"no byte of the body arrived for 0\.5 s"):
        await anext(without_stalls(chunks(60)))
