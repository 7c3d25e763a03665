"""data: URLs: base64, percent-encoding, media types, and those that are refused."""

import base64

import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.fetching.data_url import decode_data_url, is_data_url

DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    ("url", "data"),
    [
        (f"data:image/png;base64,{TEXT}", DATA),
        (f"data:;base64,{TEXT}", DATA),
        (f"DATA:IMAGE/PNG;BASE64,{TEXT}", DATA),
        (f"data:image/jpeg;name=a.jpg;base64,{TEXT}", DATA),
        ("data:image/png;base64,+/8%3D".replace("+", "%2B"), b"\xfb\xff"),
        ("data:image/svg+xml,%3Csvg/%3e", b"<svg/>"),
        ("data:text/plain;charset=utf-8,a,b", b"a,b"),
        ("data:,a", b"a"),
        ("data:image/png;base64,", b""),
    ],
)
def test_data_is_decoded(url: str, data: bytes) -> None:
    assert is_data_url(url)
    assert decode_data_url(url) == data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:", "no valid head"),
        ("data:image/png;base64", "no valid head"),
        ("data:image png,a", "no valid head"),
        ("data:image/png" + ";a" * 200 + ",a", "no valid head"),
        ("data:image/png;base64,***", "no valid base64"),
        ("data:image/png;base64,aaaaa", "no valid base64"),
        ("data:image/png;base64,aaa", "no valid base64"),
        ("data:image/png;base64,YQ==YQ==", "no valid base64"),
        ("data:image/png;base64,=YQ=", "no valid base64"),
        ("data:image/png;base64,-_8=", "no valid base64"),
        ("data:image/png;base64,YW Jj", "no valid base64"),
        ("data:image/png;base64,YWJj\n", "no valid base64"),
        ("data:image/png;base64,YWJj#x", "no valid base64"),
        ("data:image/png;base64,é", "not ASCII"),
        ("data:image/png;base64,\ud800", "not ASCII"),
        ("data:image/png;base64,%zz", "hexadecimal"),
        ("data:,%", "hexadecimal"),
    ],
)
def test_other_data_is_refused_with_the_reason(url: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        decode_data_url(url)
