"""Hosts in URLs: the one spelling that is accepted, and the entries of the settings that allow them."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Self

Address = IPv4Address | IPv6Address
MAX_HOST = 253
"""Characters of a host name at most (RFC 1035, section 2.3.4, without the final dot)."""
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label like this makes a host an IPv4 address for other parsers (WHATWG URL, section 3.5)."""
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Host:
    """A host in its only spelling: an ASCII name in lower case, or an address."""

    name: str
    """Lower case; an address as RFC 5952 writes it, without brackets."""
    address: Address | None = None
    """The address that the host is; None for a name."""

    def __str__(self) -> str:
        return f"[{self.name}]" if isinstance(self.address, IPv6Address) else self.name


def read_host(text: str) -> Host:
    """The host of a URL or of a setting. Raises ValueError with the rule that it breaks, as a clause.

    An address has one spelling alone: libraries read 0x7f.1, 2130706433, 0177.0.0.1 and full-width digits as
    127.0.0.1, and not all of them do.
    """
    if not text.isascii():
        raise ValueError("the host is not ASCII; write it in punycode, as in xn--bcher-kva.example")
    text = text.lower()
    if text.startswith("[") or ":" in text:
        return _read_ipv6(text)
    if text.endswith("."):
        raise ValueError("the host ends in a dot")
    if len(text) > MAX_HOST or not _NAME.fullmatch(text):
        raise ValueError("the host is no host name of letters, digits, hyphens and dots")
    if not _NUMBER.fullmatch(text.rpartition(".")[2]):
        return Host(text)
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise ValueError(
            "the host is an IPv4 address in another spelling than four decimal numbers without leading zeros"
        ) from None
    return Host(str(address), address)


def _read_ipv6(text: str) -> Host:
    if "%" in text:
        raise ValueError("the host is an IPv6 address with a zone")
    try:
        address = IPv6Address(text[1:-1] if text.startswith("[") and text.endswith("]") else "")
    except AddressValueError:
        raise ValueError("the host is no IPv6 address in brackets, as in [2001:db8::1]") from None
    return Host(str(address), address)


def read_port(text: str) -> int:
    """A port. Raises ValueError with the rule that it breaks, as a clause."""
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError("the port is no number from 1 to 65535")
    return int(text)


def split_port(text: str) -> tuple[str, str | None]:
    """The host and the port of HOST, HOST:PORT, [IPV6] or [IPV6]:PORT. None: it has no port."""
    end = text.rfind("]") + 1
    host, colon, port = text[end:].partition(":")
    return text[:end] + host, port if colon else None


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of the setting url_hosts or url_private_hosts."""

    host: Host
    """`*` stands for every name."""
    port: int | None = None
    """The only port; None: 80 and 443."""
    subdomains: bool = False
    """Only names below the host are meant, at any depth."""

    @classmethod
    def read(cls, entry: str) -> Self:
        """The rule of an entry. Raises ValueError, as a clause, for an entry that is no host."""
        text, port = split_port(entry)
        number = None if port is None else read_port(port)
        if text == "*":
            return cls(Host("*"), number)
        subdomains = text.startswith("*.")
        host = read_host(text.removeprefix("*."))
        if subdomains and host.address:
            raise ValueError("an address has no subdomains")
        return cls(host, number, subdomains)

    @property
    def exact(self) -> bool:
        """Whether the rule names one host and its port."""
        return self.port is not None and not self.subdomains and self.host.name != "*"

    def names(self, host: Host) -> bool:
        """Whether the rule is about this host. `*` is about names alone, never about addresses."""
        if host.address or self.host.address:
            return host == self.host
        if self.subdomains:
            return host.name.endswith(f".{self.host.name}")
        return self.host.name in ("*", host.name)

    def allows_port(self, port: int) -> bool:
        """Whether the rule allows this port."""
        return port in (80, 443) if self.port is None else port == self.port
