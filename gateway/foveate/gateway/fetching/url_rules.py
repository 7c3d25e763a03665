"""The rules on URLs: checked on the text alone, before anything is looked up or connected."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urljoin

from foveate.core.errors import UrlRefused
from foveate.core.settings import Settings
from foveate.core.url_hosts import Host, HostRule, read_host, read_port, split_port

MAX_URL = 8192
"""Characters of an http URL at most. Signed URLs have up to two thousand."""
DEFAULT_PORTS = {"http": 80, "https": 443}
METADATA_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "metadata.tencentyun.com",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
"""Names of cloud metadata services."""
FETCHING_OFF = (
    "this server does not fetch URLs, as FOVEATE_URL_HOSTS is not set; send the image itself, as base64 or in"
    " a data: URL"
)
NO_URL = "the URL must begin with http://, https:// or data:, with a host after http://"
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0\\]|\s")
"""Characters that parsers drop or read as others: controls, white space, backslashes."""


@dataclass(frozen=True, slots=True)
class FetchTarget:
    """What is fetched: the parts of a URL that is allowed."""

    scheme: str
    host: Host
    port: int
    path: str
    """The path and the query, in ASCII."""
    private: bool = False
    """The setting url_private_hosts lists the host with this port."""

    @property
    def origin(self) -> str:
        """The URL without its path and its query, for errors and logs."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """The value of the header `host`."""
        return str(self.host) if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"


class UrlRules:
    """Which URLs may be fetched."""

    def __init__(self, public: Sequence[HostRule] = (), private: Sequence[HostRule] = ()) -> None:
        """public: hosts whose public addresses may be fetched from. private: exact hosts with their ports,
        which may have private addresses. Without any, no http URL may be fetched."""
        self.public, self.private = public, private

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The rules of the settings."""
        return cls(
            [HostRule.read(entry) for entry in settings.url_hosts],
            [HostRule.read(entry) for entry in settings.url_private_hosts],
        )

    @property
    def off(self) -> bool:
        """Whether no http URL may be fetched."""
        return not (self.public or self.private)

    def check(self, url: str) -> FetchTarget:
        """What the URL names. Raises UrlRefused with the rule that it breaks."""
        if len(url) > MAX_URL:
            # Base64 without the head of a data: URL is a common mistake.
            raise UrlRefused(f"the URL has over {MAX_URL} characters" if _HTTP.match(url) else NO_URL)
        if _UNSAFE.search(url):
            raise UrlRefused("the URL has white space, a control character or a backslash; percent-encode it")
        parts = _URL.fullmatch(url)
        if parts is None:
            raise UrlRefused(NO_URL)
        if self.off:
            raise UrlRefused(FETCHING_OFF)
        scheme, authority, path, query = parts.groups("")
        return self._allowed(scheme.lower(), authority, f"{path or '/'}{query}")

    def redirected(self, target: FetchTarget, location: bytes) -> FetchTarget:
        """What a redirect from `target` names, checked as a URL of its own. Raises UrlRefused."""
        try:
            text = location.decode("ascii")
        except UnicodeDecodeError:
            raise UrlRefused("the URL redirects to a target that is not ASCII") from None
        if len(text) > MAX_URL or _UNSAFE.search(text):
            raise UrlRefused("the URL redirects to a target that is no valid URL")
        if not _SCHEME.match(text):  # a relative one; urljoin would let other schemes be relative too
            text = urljoin(f"{target.origin}{target.path}", text)
        try:
            following = self.check(text)
        except UrlRefused as error:
            raise UrlRefused(f"the URL redirects to a target that is refused: {error.detail}") from None
        if target.scheme == "https" and following.scheme == "http":
            raise UrlRefused("the URL redirects from https to http")
        return following

    def _allowed(self, scheme: str, authority: str, path: str) -> FetchTarget:
        if "@" in authority:
            raise UrlRefused("the URL has a user name or a password before its host")
        name, port_text = split_port(authority)
        try:
            host = read_host(name)
            port = DEFAULT_PORTS[scheme] if port_text is None else read_port(port_text)
        except ValueError as error:
            raise UrlRefused(f"the URL is refused: {error}") from None
        if host.name in METADATA_NAMES:
            raise UrlRefused(f"the URL names {host}, a metadata service")
        private = any(rule.names(host) and rule.allows_port(port) for rule in self.private)
        if not private:
            self._check_public(host, port)
        return FetchTarget(scheme, host, port, percent_encoded(path), private)

    def _check_public(self, host: Host, port: int) -> None:
        rules = [rule for rule in self.public if rule.names(host)]
        if not rules:
            raise UrlRefused(f"the host {str(host)[:60]!r} is not one that the server fetches from")
        if not any(rule.allows_port(port) for rule in rules):
            raise UrlRefused(f"the port {port} is not one that the server fetches from on {str(host)[:60]!r}")


def percent_encoded(path: str) -> str:
    """The path and query of a URL in ASCII. Raises UrlRefused for text that is not Unicode."""
    try:
        return quote(path, safe=string.punctuation)
    except UnicodeEncodeError:
        raise UrlRefused("the URL is no Unicode text") from None
