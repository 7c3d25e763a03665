"""JSON bodies: media in base64, options, encodings of the text, and bodies that are refused."""

import base64
import codecs
from typing import Any

import orjson
import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.body_formats.json_body import (
    MAX_JSON_OBJECTS,
    MAX_JSON_TOKENS,
    JsonContent,
    decode_data,
    head_of_data,
    parse_members,
    read_json,
)
from tests.support.gateway import assert_problem, serving_fakes

DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()


def test_media_and_options_are_read() -> None:
    body = orjson.dumps({"points": [[1, 2.5]], "data": TEXT, "top_k": 1, "explain": True, "model": None})
    content = read_json(body)
    assert decode_data(content.data) == DATA
    assert content.url is None
    assert content.fields == [("points", [[1, 2.5]]), ("top_k", 1), ("explain", True), ("model", None)]


def test_a_url_takes_the_place_of_the_media() -> None:
    body = orjson.dumps({"top_k": 1, "url": "https://example.org/a.jpg"})
    assert read_json(body) == JsonContent([("top_k", 1)], url="https://example.org/a.jpg")


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        base64.encodebytes(DATA).decode(),
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
        f"data:image/jpeg;base64,{TEXT}",
        f"data:image/jpeg;name=a.jpg;base64,{TEXT}",
    ],
)
def test_base64_is_read_in_all_its_forms(text: str) -> None:
    encoded = read_json(orjson.dumps({"data": text})).data
    assert decode_data(encoded) == DATA
    assert DATA.startswith(head_of_data(encoded))
    assert len(head_of_data(encoded)) > 64


def test_a_byte_order_mark_is_ignored() -> None:
    assert read_json(codecs.BOM_UTF8 + orjson.dumps({"data": TEXT})) == JsonContent([], TEXT.encode())


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wider_encodings_are_named(codec: str) -> None:
    with pytest.raises(BadRequest, match="UTF-16 or UTF-32; send it in UTF-8"):
        read_json(f'{{"data": "{TEXT}"}}'.encode(codec))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"data": "a', "not valid JSON: Unterminated string starting at at character 9"),
        (b'{"data": "aa",}', "not valid JSON"),
        (b"{'data': 'aa'}", "not valid JSON"),
        (b'{"data": NaN}', "NaN is not a JSON number"),
        (b'{"data": "aa", "top_k": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"data": "aa", "points": ' + b"[" * 900 + b"]" * 900 + b"}", "over 300 objects and arrays"),
        (b'{"data": "\xe9"}', "not UTF-8"),
        (b'{"data": "aa", "data": "bb"}', "'data' twice; send one image or clip a request"),
        (b'{"data": "aa", "url": "http://a/b.jpg"}', "'data' and 'url'; send one of them"),
        (b'{"url": "http://a/b.jpg", "url": "http://a/c.jpg"}', "'url' twice"),
        (b'{"url": "http://a/b.jpg", "image": "aa"}', "the key 'image'"),
        (b'{"url": null}', "or its URL in 'url'"),
        (b'{"url": ["http://a/b.jpg"]}', "or its URL in 'url'"),
        (b'{"url": {"url": "http://a/b.jpg"}}', "or its URL in 'url'"),
        (b'{"image": "aa"}', "the key 'image'; send the image or clip in 'data'"),
        (b'{"data": "aa", "file": "aa"}', "the key 'file'; send the image or clip in 'data'"),
        (b'{"data": ["aa"]}', "base64 text in 'data'"),
        (b'{"data": null}', "base64 text in 'data'"),
        (b'{"data": {"data": "aa"}}', "base64 text in 'data'"),
    ],
)  # fmt: skip
def test_other_bodies_are_refused_with_the_reason(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_json(body)
    assert words in refused.value.detail
    assert len(refused.value.detail) < 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"https://example.org/a.jpg", "'data' holds a URL; send it in 'url'"),
        (b"data:image/svg+xml,<svg/>", "data URL that is not base64"),
        (b"***", "not valid base64"),
        (b"aaaaa", "not valid base64"),
        ("é".encode(), "not valid base64"),
    ],
)
def test_other_texts_are_refused_with_the_reason(text: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        decode_data(text)
    assert len(head_of_data(text)) < 4


@pytest.mark.parametrize("fields", [[], "text", 5, None, [{"data": TEXT}]])
def test_json_is_an_object(fields: Any) -> None:
    with pytest.raises(BadRequest, match="an object"):
        read_json(orjson.dumps(fields))


def test_json_of_too_many_parts_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BadRequest, match="over 3000 objects, arrays and commas"):
        parse_members(b"," * (MAX_JSON_TOKENS + 1))
    with pytest.raises(BadRequest, match="over 300 objects and arrays"):
        parse_members(b"[" * (MAX_JSON_OBJECTS + 1))
    with pytest.raises(BadRequest, match="not valid JSON"):
        parse_members(b"[" * MAX_JSON_OBJECTS)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"],
)
async def test_json_types_are_answered(kind: str) -> None:
    async with serving_fakes() as gateway:
        body = codecs.BOM_UTF8 + orjson.dumps({"data": TEXT})
        assert (await gateway.post("/classify", body, content_type=kind)).status_code == 200
    assert gateway.runner.batches == [[DATA]]


@pytest.mark.anyio
async def test_deep_lists_do_not_fail_the_server() -> None:
    async with serving_fakes() as gateway:
        for name in ("top_k", "explain", "model"):
            body = b'{"data": "aW1n", "%b": %b}' % (name.encode(), b"[" * 299 + b"]" * 299)
            assert_problem(
                await gateway.post("/classify", body, content_type="application/json"), 400, f"{name} must be"
            )


@pytest.mark.anyio
async def test_text_that_is_not_unicode_does_not_fail_the_server() -> None:
    async with serving_fakes() as gateway:
        for body in (b'{"data": "aW1n", "model": "\\ud800"}', b'{"data": "aW1n", "\\ud800": 1}'):
            refused = await gateway.post("/classify", body, content_type="application/json")
            assert_problem(refused, 400, "\\ud800")
        assert gateway.counted("invalid") == 2
