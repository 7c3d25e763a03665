"""Which network an address belongs to: public, private, or one that is never fetched from.

The ranges stand here, and not `is_global` of Python's ipaddress, whose ranges change between patch releases.
Source: the IANA special-purpose address registries (RFC 6890), with the addresses of cloud metadata services.
"""

from collections.abc import Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from foveate.core.url_hosts import Address

Network = IPv4Network | IPv6Network


class Reach(Enum):
    """The kind of network that an address belongs to."""

    PUBLIC = "public"
    PRIVATE = "private"
    """Loopback, or a network that is not routed on the internet."""
    FORBIDDEN = "forbidden"
    """Metadata services, link-local, multicast, and ranges without hosts."""


def networks(*texts: str) -> Sequence[Any]:
    """The networks of these texts."""
    return tuple(ip_network(text) for text in texts)


METADATA = networks(
    "169.254.0.0/16",  # link-local, with the metadata services of most clouds
    "100.100.100.200/32",  # Alibaba Cloud
    "168.63.129.16/32",  # Azure's wire server: a public address that leads to the host
    "192.0.0.192/32",  # Oracle Cloud
    "fd00:ec2::/32",  # AWS
    "fd20:ce::/32",  # Google Cloud
)
"""Addresses of metadata services, which give credentials to those who ask."""
PRIVATE = networks(
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT (RFC 6598)
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",  # unique local (RFC 4193)
)
"""Networks that the setting url_private_hosts may open."""
SPECIAL = networks(
    "0.0.0.0/8",  # this host on this network
    "192.0.0.0/24",  # IETF protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "2001::/23",  # IETF protocol assignments, with Teredo, benchmarks and ORCHID
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4, which embeds IPv4 addresses
    "3fff::/20",  # documentation
)
"""Ranges of IPv4, and of the global unicast range of IPv6, that have no public hosts."""
GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All public addresses of IPv6."""
NAT64 = IPv6Network("64:ff9b::/96")
"""Embeds IPv4 addresses (RFC 6052): DNS of networks without IPv4 answers with it."""


def reach_of(address: Address) -> Reach:
    """The kind of network that an address, or the IPv4 address that it embeds, belongs to."""
    plain = embedded(address)
    if _in(plain, METADATA):
        return Reach.FORBIDDEN
    if _in(plain, PRIVATE):
        return Reach.PRIVATE
    if _in(plain, SPECIAL) or (isinstance(plain, IPv6Address) and plain not in GLOBAL_UNICAST):
        return Reach.FORBIDDEN
    return Reach.PUBLIC


def embedded(address: Address) -> Address:
    """The IPv4 address in an IPv4-mapped or a NAT64 address; any other address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _in(address: Address, ranges: Sequence[Network]) -> bool:
    return any(address in network for network in ranges)
