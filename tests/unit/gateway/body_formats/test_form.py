"""Multipart forms: parts, names, limits, and forms that do not parse."""

import os
from collections.abc import Sequence

import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.body_formats.form import MAX_OVERHEAD_BYTES, FormParser
from tests.support.gateway import assert_problem, serving_fakes

FORM = "multipart/form-data; boundary=XX"
FILE = ('name="file"; filename="a.jpg"', b"\xff\xd8 image \r\n--X")


def form(*parts: tuple[str, bytes], more: str = "") -> bytes:
    """A form of parts: parameters of their content-disposition, and their bytes. more: another header."""
    lines = [
        b"--XX\r\nContent-Disposition: form-data; %b\r\n%b\r\n%b\r\n" % (name.encode(), more.encode(), data)
        for name, data in parts
    ]
    return b"".join(lines) + b"--XX--\r\n"


def parsed(
    body: bytes, size: int = 2**16, content_type: str = FORM
) -> tuple[bytes, Sequence[tuple[str, str]]]:
    """The bytes of the file, and the fields."""
    parser = FormParser(content_type)
    pieces = [piece for at in range(0, len(body), size) for piece in parser.feed(body[at : at + size])]
    parser.finish()
    return b"".join(pieces), parser.fields


@pytest.mark.parametrize("size", [1, 7, 2**16])
def test_a_form_has_one_file_and_fields_before_and_after_it(size: int) -> None:
    body = form(('name="top_k"', b"3"), FILE, ('name="model"', "größe".encode()))
    assert parsed(body, size) == (FILE[1], [("top_k", "3"), ("model", "größe")])


@pytest.mark.parametrize(
    "parameters",
    [
        'name="file"',
        "name=file",
        'name="file"; filename=""',
        "name=\"file\"; filename*=UTF-8''%e7%8c%ab.jpg",
        'name="file"; filename="\xe7\x8c\xab; \\"x.jpg"',
        'filename="a.jpg"; name="file"',
    ],
)
def test_the_file_needs_no_file_name(parameters: str) -> None:
    assert parsed(form((parameters, b"image"))) == (b"image", [])


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "no-such-codec"])
def test_the_charset_of_a_form_is_ignored(charset: str) -> None:
    content_type = f"{FORM}; charset={charset}"
    assert parsed(form(FILE, ('name="top_k"', b"3")), content_type=content_type)[1] == [("top_k", "3")]


def test_a_form_may_have_many_and_long_fields() -> None:
    fields = [(f'name="f{number}"', b"x") for number in range(50)] + [('name="meta"', b"x" * 5000)]
    data, names = parsed(form(*fields, FILE))
    assert (data, len(names)) == (FILE[1], 51)


@pytest.mark.parametrize("first", [False, True])
def test_bytes_beside_the_file_are_limited(first: bool) -> None:
    field = ('name="meta"', b"x" * MAX_OVERHEAD_BYTES)
    for body in (
        form(*([field, FILE] if first else [FILE, field])),
        form(FILE) + b"\r\n" * MAX_OVERHEAD_BYTES,
        form(FILE, *[('name="a"', b"")] * (MAX_OVERHEAD_BYTES // 40)),
    ):
        with pytest.raises(BadRequest, match="over 131072 bytes beside its file"):
            parsed(body)


def test_a_large_file_does_not_count_in_that_limit() -> None:
    data = os.urandom(3 * 2**20)
    assert parsed(form(('name="file"', data)))[0] == data


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(FILE, FILE), "two parts 'file'; send one image or clip a request"),
        (form(('name="image"; filename="a.jpg"', b"x")), "a part 'image'; send the image or clip in a part"),
        (form(('name="files"', b"x")), "a part 'files'; send the image or clip in a part named 'file'"),
        (form(('name="file[]"; filename="a"', b"x")), "a part 'file[]'"),
        (form(FILE, ('name="mask"; filename="m.png"', b"x")), "a part 'mask'"),
        (form(), "no part 'file'"),
        (form(('name="top_k"', b"3")), "no part 'file'"),
        (form(('name="file"; filename=""', b"")), "'file' of the form is empty"),
        (form(('name="top_k"', b"\xff")), "field 'top_k' is not UTF-8"),
        (form(('filename="a.jpg"', b"x")), "content-disposition: form-data; name"),
        (form(FILE)[:-10], "ends before its last boundary"),
        (form(FILE).replace(b"form-data", b"attachment"), "content-disposition: form-data; name"),
        (form(FILE, more="Content-Transfer-Encoding: base64\r\n"), "content-transfer-encoding 'base64'"),
        (b"--YY\r\n", "does not parse: "),
        (b"nonsense", "does not parse: "),
        (form(FILE, more="x" * 9000 + ": y\r\n"), "does not parse: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [5, 2**16])
def test_other_forms_are_refused_with_the_reason(body: bytes, words: str, size: int) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed(body, size)
    assert words in refused.value.detail
    assert len(refused.value.detail) < 200


def test_forms_that_do_not_parse_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadRequest):
        parsed(b"nonsense")
    assert not caplog.records


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7BIT"])
def test_plain_transfer_encodings_are_accepted(encoding: str) -> None:
    assert parsed(form(FILE, more=f"Content-Transfer-Encoding: {encoding}\r\n"))[0] == FILE[1]


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("multipart/form-data", "needs a boundary"),
        ("multipart/form-data; boundary=", "needs a boundary"),
        ('multipart/form-data; boundary=""', "needs a boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, "does not parse"),
    ],
)
def test_a_form_needs_a_boundary(content_type: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        FormParser(content_type)


@pytest.mark.anyio
async def test_a_form_is_answered_or_refused_with_the_reason() -> None:
    async with serving_fakes() as gateway:
        named = await gateway.post("/classify", form(FILE, ('name="top_k"', b"1")), content_type=FORM)
        assert len(named.json()["predictions"]) == 1
        unnamed = await gateway.post("/classify", form(('name="file"', b"image")), content_type=FORM)
        assert unnamed.status_code == 200
        for body, words in (
            (form(FILE, FILE), "two parts 'file'"),
            (form(('name="meta"', b"x" * 5000), FILE), "no option 'meta'"),
            (form(*[(f'name="f{number}"', b"x") for number in range(20)], FILE), "no option 'f0'"),
            (form(FILE)[:-10], "last boundary"),
        ):
            assert_problem(await gateway.post("/classify", body, content_type=FORM), 400, words)
        assert gateway.app.state.limiter.bytes == 0
    assert gateway.runner.batches == [[FILE[1]], [b"image"]]
