"""Media types and image sizes from the first bytes of a file."""

import base64
import gzip

import pytest

from foveate.gateway.media.image_format import describe_unknown, sniff, webp_size
from tests.support.media_samples import RED, encode, flat, webp_canvas


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(flat("RGB", RED), "JPEG"), "image/jpeg"),
        (encode(flat("RGB", RED), "PNG"), "image/png"),
        (encode(flat("P", 0), "GIF"), "image/gif"),
        (encode(flat("RGB", RED), "WEBP"), "image/webp"),
        (encode(flat("RGB", RED), "BMP"), "image/bmp"),
        (encode(flat("RGB", RED), "TIFF"), "image/tiff"),
        (encode(flat("RGB", RED), "TIFF", big_tiff=True), "image/tiff"),
        (b"MM\0*\0\0\0\x08", "image/tiff"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "image/avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(20), "image/avif"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video/quicktime"),
        (b"\x1a\x45\xdf\xa3" + bytes(20) + b"webm", "video/webm"),
        (b"%PDF-1.4", "application/pdf"),
        (b"\xef\xbb\xbf \n<svg width='3'>", "image/svg+xml"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg>", "image/svg+xml"),
        (b"<html><body>not found</body></html>", None),
        (b'{"data": ""}', None),
        (b"", None),
    ],
)
def test_sniff_reads_the_media_type_from_the_first_bytes(data: bytes, kind: str | None) -> None:
    assert sniff(data) == kind


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not an image", "not an image or a clip in a known format"),
        (b'{"data": "/9j/4AAQ"}', "content-type: application/json"),
        (b" \n[1]", "content-type: application/json"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n',
            "multipart/form-data and its boundary",
        ),
        (base64.b64encode(encode(flat("RGB", RED), "JPEG")), "base64 text"),
        (base64.b64encode(encode(flat("RGB", RED), "PNG")), "base64 text"),
        (base64.b64encode(encode(flat("P", 0), "GIF")), "base64 text"),
        (base64.b64encode(encode(flat("RGB", RED), "WEBP")), "base64 text"),
        (base64.b64encode(b"\0\0\0\x20ftypisom"), "base64 text"),
        (b"data:image/png;base64,iVBORw0KGgo", "base64 text"),
        (gzip.compress(b"image", mtime=0), "content-encoding: gzip"),
        (b"https://example.org/a.jpg", "URL"),
    ],
)
def test_what_clients_send_in_place_of_an_image_is_named(data: bytes, words: str) -> None:
    assert sniff(data) is None
    assert words in describe_unknown(data)


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_the_size_of_a_webp_is_in_its_header(options: dict[str, bool]) -> None:
    assert webp_size(encode(flat("RGB", RED, (321, 45)), "WEBP", **options)) == (321, 45)


def test_the_size_of_an_animated_webp_is_that_of_its_canvas() -> None:
    assert webp_size(webp_canvas(16384, 12)) == (16384, 12)
