"""Checks of a request's head: hosts, sizes, targets."""

import pytest

from foveate.gateway.http_server import refusals
from foveate.gateway.http_server.head import check_host, check_size, is_valid_host, origin_form


@pytest.mark.parametrize("host", [b"a", b"example.org:80", b"127.0.0.1:8000", b"[::1]", b"a_b", b"%41"])
def test_hosts_that_are_valid(host: bytes) -> None:
    assert is_valid_host(host)


@pytest.mark.parametrize("host", [b"", b":80", b"a:b", b"a b", b"a/b", b"u@a", b"[", b"a,b c", b"\xff"])
def test_hosts_that_are_not(host: bytes) -> None:
    assert not is_valid_host(host)


def test_absolute_targets_become_paths() -> None:
    assert origin_form(b"http://a/b?c=d") == b"/b?c=d"
    assert origin_form(b"http://a?c") == b"/?c"
    assert origin_form(b"*") == b"/*"


def test_http_1_1_needs_one_host_and_http_1_0_none() -> None:
    for hosts, version, right in (
        ([b"a"], "1.1", True),
        ([], "1.1", False),
        ([b"a", b"a"], "1.1", False),
        ([b""], "1.1", False),
        ([], "1.0", True),
        ([b"a", b"b"], "1.0", False),
    ):
        assert check_host(hosts, version) is (None if right else refusals.NO_HOST)


def test_the_larger_part_of_a_head_names_its_refusal() -> None:
    assert check_size(b"/", [(b"a", b"b" * 65_000)]) is None
    assert check_size(b"/", [(b"a", b"b" * 66_000)]) is refusals.HEAD_TOO_LARGE
    assert check_size(b"/" * 66_000, []) is refusals.URL_TOO_LONG
