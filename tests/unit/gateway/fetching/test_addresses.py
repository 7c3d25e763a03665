"""The network of an address: public, private, or never fetched from."""

from ipaddress import ip_address

import pytest

from foveate.gateway.fetching.addresses import Reach, reach_of


@pytest.mark.parametrize(
    "text",
    [
        "8.8.8.8", "93.184.216.34", "11.0.0.1", "172.15.255.255", "172.32.0.1", "100.63.255.255",
        "100.128.0.1",
        "198.17.255.255", "198.20.0.1", "223.255.255.255", "2606:2800:220:1::1", "2a00:1450::1",
        "::ffff:8.8.8.8", "64:ff9b::808:808",
    ],
)  # fmt: skip
def test_public_addresses(text: str) -> None:
    assert reach_of(ip_address(text)) is Reach.PUBLIC


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1", "10.255.255.255", "127.0.0.1", "127.255.255.254", "172.16.0.1", "172.31.255.255",
        "192.168.0.1", "100.64.0.1", "100.127.255.255", "::1", "fc00::1", "fdff::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:192.168.1.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    ],
)  # fmt: skip
def test_private_addresses(text: str) -> None:
    assert reach_of(ip_address(text)) is Reach.PRIVATE


@pytest.mark.parametrize(
    "text",
    [
        # metadata services
        "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "::ffff:168.63.129.16",
        # link-local, unspecified, multicast, reserved, broadcast
        "169.254.0.1", "fe80::1", "fe80::1%eth0", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1",  # noqa: S104
        "239.255.255.255",
        "ff02::1", "ff0e::1", "240.0.0.1", "255.255.255.255", "fec0::1", "4000::1", "::ffff:0.0.0.0",
        # benchmarks, documentation, protocol assignments
        "198.18.0.1", "198.19.255.255", "2001:2::1", "192.0.2.1", "198.51.100.1", "203.0.113.1",
        "2001:db8::1",
        "3fff::1", "192.0.0.1", "192.88.99.1", "100::1", "5f00::1",
        # 6to4, Teredo, ORCHID, IPv4-compatible, NAT64 with a local prefix
        "2002:7f00:1::1", "2002:a9fe:a9fe::", "2002:808:808::1", "2001:0:7f00:1::1", "2001:20::1",
        "::127.0.0.1",
        "::7f00:1", "64:ff9b:1::7f00:1", "::ffff:0:127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_never_fetched_from(text: str) -> None:
    assert reach_of(ip_address(text)) is Reach.FORBIDDEN
