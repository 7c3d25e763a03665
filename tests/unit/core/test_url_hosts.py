"""The spelling of hosts, and the entries of the settings that allow them."""

import pytest

from foveate.core.url_hosts import HostRule, read_host


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("images.example.org", "images.example.org"),
        ("IMAGES.Example.ORG", "images.example.org"),
        ("my_bucket.s3.example", "my_bucket.s3.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a", "a"),
        ("1e3", "1e3"),
        ("8.8.8.8", "8.8.8.8"),
        ("[2606:2800:0:0:0:0:0:1]", "2606:2800::1"),
        ("[::FFFF:8.8.8.8]", "::ffff:808:808"),
    ],
)
def test_hosts_have_one_spelling(text: str, name: str) -> None:
    assert read_host(text).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no host name"),
        ("example.org.", "ends in a dot"),
        ("localhost.", "ends in a dot"),
        ("127.0.0.1.", "ends in a dot"),
        ("a..b", "no host name"),
        (".example.org", "no host name"),
        ("-a.example", "no host name"),
        ("a b", "no host name"),
        ("a%2eb", "no host name"),
        ("127.0.0.1%00.example.org", "no host name"),
        ("a" * 64 + ".example", "no host name"),
        (".".join(["a" * 60] * 5), "no host name"),
        ("2130706433", "another spelling"),
        ("127.1", "another spelling"),
        ("127.0.1", "another spelling"),
        ("0x7f.0.0.1", "another spelling"),
        ("127.0.0.0x1", "another spelling"),
        ("0x7f000001", "another spelling"),
        ("0X7F000001", "another spelling"),
        ("017700000001", "another spelling"),
        ("0177.0.0.1", "another spelling"),
        ("127.0.0.01", "another spelling"),
        ("127.0.0.1.5", "another spelling"),
        ("256.0.0.1", "another spelling"),
        ("0x", "another spelling"),
        ("example.0", "another spelling"),
        ("[::1", "no IPv6 address"),
        ("::1", "no IPv6 address"),
        ("[]", "no IPv6 address"),
        ("[127.0.0.1]", "no IPv6 address"),
        ("[::1].example.org", "no IPv6 address"),
        ("[fe80::1%25eth0]", "with a zone"),
        ("[fe80::1%eth0]", "with a zone"),
        ("１２７.0.0.1", "not ASCII"),
        ("⑯⑨.254.169.254", "not ASCII"),
        ("127。0。0。1", "not ASCII"),
        ("bücher.example", "not ASCII"),
        ("ⓔxample.org", "not ASCII"),
    ],
)
def test_other_spellings_are_refused_with_the_rule(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_host(text)


@pytest.mark.parametrize(
    ("entry", "host", "named"),
    [
        ("example.org", "example.org", True),
        ("Example.org", "EXAMPLE.org", True),
        ("example.org", "www.example.org", False),
        ("example.org", "badexample.org", False),
        ("*.example.org", "www.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "badexample.org", False),
        ("*.example.org", "example.org.evil.test", False),
        ("*", "example.org", True),
        ("*", "8.8.8.8", False),
        ("*", "[2606:2800::1]", False),
        ("8.8.8.8", "8.8.8.8", True),
        ("8.8.8.8", "8.8.4.4", False),
        ("[2606:2800::1]", "[2606:2800:0::1]", True),
    ],
)
def test_entries_name_hosts(entry: str, host: str, named: bool) -> None:
    assert HostRule.read(entry).names(read_host(host)) is named


def test_entries_name_ports() -> None:
    assert [HostRule.read("a").allows_port(port) for port in (80, 443, 8443)] == [True, True, False]
    assert [HostRule.read("*.a:8443").allows_port(port) for port in (80, 443, 8443)] == [False, False, True]
    assert HostRule.read("[::1]:9000").allows_port(9000)
    assert HostRule.read("a:9000").exact and HostRule.read("10.0.0.1:9000").exact
    assert not any(HostRule.read(entry).exact for entry in ("a", "*:9000", "*.a:9000"))


@pytest.mark.parametrize(
    "entry",
    [
        "https://a",
        "a/b",
        "a:",
        "a:0",
        "a:99999",
        "a:+80",
        "a:8O",
        "*a",
        "a.*",
        "*.",
        "*.8.8.8.8",
        "u@a",
        "*.*.a",
    ],
)
def test_entries_that_are_no_hosts_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"the host|the port|an address"):
        HostRule.read(entry)
