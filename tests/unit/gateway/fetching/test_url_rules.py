"""URLs that are refused before anything is looked up, and those that are allowed."""

import pytest

from foveate.core.errors import UrlRefused
from foveate.core.settings import Settings
from foveate.gateway.fetching.url_rules import MAX_URL, UrlRules

HOSTS = ("images.example.org", "*.cdn.example", "ports.example:8443", "8.8.8.8", "[2606:2800::1]", "10.0.0.9")
PRIVATE = ("minio.storage:9000", "10.0.0.5:9000", "metadata.google.internal:80")
RULES = UrlRules.of(Settings(url_hosts=HOSTS, url_private_hosts=PRIVATE))
ALL = UrlRules.of(Settings(url_hosts=("*",)))


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://images.example.org/a.jpg", "http://images.example.org", "/a.jpg"),
        ("HTTPS://Images.Example.org:443/a?b=c#d", "https://images.example.org", "/a?b=c"),
        ("https://images.example.org:80", "https://images.example.org:80", "/"),
        ("https://images.example.org?x", "https://images.example.org", "/?x"),
        (
            "https://images.example.org/a%20b/../é?q=@:/",
            "https://images.example.org",
            "/a%20b/../%C3%A9?q=@:/",
        ),
        ("https://a.b.cdn.example/", "https://a.b.cdn.example", "/"),
        ("https://ports.example:8443/", "https://ports.example:8443", "/"),
        ("http://8.8.8.8/", "http://8.8.8.8", "/"),
        ("http://[2606:2800:0::1]/", "http://[2606:2800::1]", "/"),
        ("http://minio.storage:9000/b/k", "http://minio.storage:9000", "/b/k"),
    ],
)
def test_allowed_urls(url: str, origin: str, path: str) -> None:
    target = RULES.check(url)
    assert (target.origin, target.path) == (origin, path)
    assert target.private is ("minio" in url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        # schemes and paths
        ("file:///etc/passwd", "must begin with"),
        ("/etc/passwd", "must begin with"),
        ("etc/passwd", "must begin with"),
        ("C:/windows/win.ini", "must begin with"),
        ("ftp://images.example.org/", "must begin with"),
        ("gopher://images.example.org/", "must begin with"),
        ("jar:http://images.example.org!/", "must begin with"),
        ("unix:/run/docker.sock", "must begin with"),
        ("s3://images.example.org/a", "must begin with"),
        ("//images.example.org/a", "must begin with"),
        ("http:images.example.org", "must begin with"),
        ("http:/images.example.org", "must begin with"),
        ("httpx://images.example.org", "must begin with"),
        ("", "must begin with"),
        # userinfo
        ("http://images.example.org@evil.test/", "user name"),
        ("http://user:secret@images.example.org/", "user name"),
        ("http://@images.example.org/", "user name"),
        ("http://evil.test#@images.example.org/", "'evil.test' is not one"),
        ("http://evil.test?@images.example.org/", "'evil.test' is not one"),
        # ports
        ("http://images.example.org:22/", "the port 22 is not one"),
        ("http://images.example.org:8443/", "the port 8443 is not one"),
        ("http://ports.example/", "the port 80 is not one"),
        ("http://minio.storage/", "'minio.storage' is not one"),
        ("http://images.example.org:/", "the port is no number"),
        ("http://images.example.org:080/", "the port is no number"),
        ("http://images.example.org:99999/", "the port is no number"),
        ("http://images.example.org:80:80/", "the port is no number"),
        ("http://images.example.org:٨٠/", "the port is no number"),
        # hosts
        ("http:///etc/passwd", "no host name"),
        ("http://evil.test/", "'evil.test' is not one"),
        ("http://images.example.org.evil.test/", "not one"),
        ("http://cdn.example/", "not one"),
        ("http://8.8.4.4/", "not one"),
        ("http://127.0.0.1/", "not one"),
        ("http://images.example.org./", "ends in a dot"),
        ("http://2130706433/", "another spelling"),
        ("http://0x7f000001/", "another spelling"),
        ("http://0177.0.0.1/", "another spelling"),
        ("http://127.1/", "another spelling"),
        ("http://[fe80::1%25eth0]/", "with a zone"),
        ("http://[::1]evil/", "no IPv6"),
        ("http://１２７.0.0.1/", "not ASCII"),
        ("http://images.example.org%2eevil.test/", "no host name"),
        ("http://images.example.org%00.evil.test/", "no host name"),
        ("http://metadata.google.internal/", "a metadata service"),
        ("http://METADATA.google.internal/computeMetadata/v1/", "a metadata service"),
        # characters
        ("http://evil.test\\@images.example.org/", "backslash"),
        ("http:\\\\images.example.org/", "backslash"),
        ("http://images.example.org/a b", "white space"),
        (" http://images.example.org/", "white space"),
        ("http://images.example.org/\n", "white space"),
        ("ht\ntp://images.example.org/", "white space"),
        ("http://images.example.org/\r\nHost: evil", "white space"),
        ("http://images.example.org\t/", "white space"),
        ("http://images.example.org/\x00", "white space"),
        ("http://images.example.org/\x7f", "white space"),
        ("http://images.example.org/\x85", "white space"),
        ("http://images.example.org/\u3000a", "white space"),
        ("http://images.example.org/\ud800", "no Unicode"),
        ("http://images.example.org/" + "a" * MAX_URL, "characters"),
    ],
)  # fmt: skip
def test_refused_urls(url: str, words: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        RULES.check(url)
    assert words in refused.value.detail
    assert len(refused.value.detail) < 200


def test_a_star_opens_names_alone() -> None:
    assert ALL.check("https://any.example/").origin == "https://any.example"
    for url in ("http://8.8.8.8/", "http://[2606:2800::1]/", "http://10.0.0.1/"):
        with pytest.raises(UrlRefused, match="not one that the server fetches from"):
            ALL.check(url)


def test_nothing_is_fetched_by_default() -> None:
    rules = UrlRules.of(Settings())
    assert rules.off
    with pytest.raises(UrlRefused, match="FOVEATE_URL_HOSTS is not set"):
        rules.check("https://images.example.org/a.jpg")


@pytest.mark.parametrize(
    ("location", "origin", "path"),
    [
        (b"b.jpg", "https://images.example.org", "/x/b.jpg"),
        (b"/b.jpg?c", "https://images.example.org", "/b.jpg?c"),
        (b"?c", "https://images.example.org", "/x/a.jpg?c"),
        (b"//a.cdn.example/b", "https://a.cdn.example", "/b"),
        (b"https://a.cdn.example/b#c", "https://a.cdn.example", "/b"),
    ],
)
def test_targets_of_redirects(location: bytes, origin: str, path: str) -> None:
    target = RULES.redirected(RULES.check("https://images.example.org/x/a.jpg"), location)
    assert (target.origin, target.path) == (origin, path)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (b"http://images.example.org/b", "from https to http"),
        (b"https://evil.test/", "redirects to a target that is refused: the host 'evil.test'"),
        (b"//127.0.0.1/", "'127.0.0.1' is not one"),
        (b"https://images.example.org@evil.test/", "user name"),
        (b"https://0x7f.1/", "another spelling"),
        (b"file:///etc/passwd", "must begin with"),
        (b"data:image/png;base64,aaaa", "must begin with"),
        (b"http:b", "must begin with"),
        (b"gopher:b", "must begin with"),
        (b"/a\r\nb: c", "no valid URL"),
        (b"/a\\b", "no valid URL"),
        (b"\xc3\xa9", "not ASCII"),
        (b"/" + b"a" * MAX_URL, "no valid URL"),
    ],
)
def test_redirects_that_are_refused(location: bytes, words: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        RULES.redirected(RULES.check("https://images.example.org/x/a.jpg"), location)
    assert words in refused.value.detail
    assert len(refused.value.detail) < 240
