"""The server under test, and the bytes of a request."""

import pytest

from foveate.core.errors import SetupError
from loadtests.load.target import request_bytes, request_head, target


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://8.8.8.8:80", r"8\.8\.8\.8 is another machine"),
        ("https://127.0.0.1", "is not the address of a server"),
        ("127.0.0.1:8000", "is not the address of a server"),
        ("http://127.0.0.1:http", "the port of .* is not a number"),
    ],
)
def test_only_this_machine_can_be_a_target(url: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        target(url, "/classify", {})


def test_the_base_url_may_be_that_of_an_openai_client() -> None:
    for base in ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/"):
        assert target(base, "/v1/chat/completions", {}).path == "/v1/chat/completions"
    assert target("http://127.0.0.1:8000/v1", "/classify", {}).path == "/v1/classify"


def test_a_request_is_valid_http() -> None:
    server = target("http://127.0.0.1:8000", "/classify", {"x-plan": "full"})
    head = request_head(server, {"x-slo-ms": "200"})
    assert request_bytes(head, b"\xff\xd8!").split(b"\r\n") == [
        b"POST /classify HTTP/1.1", b"host: 127.0.0.1:8000", b"content-type: image/jpeg",
        b"cache-control: no-cache", b"x-slo-ms: 200", b"x-plan: full",
        b"content-length: 3", b"", b"\xff\xd8!",
    ]  # fmt: skip


def test_chats_may_be_served_from_caches_of_pictures_and_prompts() -> None:
    chats = target("http://127.0.0.1:8000", "/v1/chat/completions", {})
    assert b"cache-control" not in request_head(chats, {})
