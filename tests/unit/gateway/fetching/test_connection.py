"""One request over a connection to a checked address."""

import asyncio
import logging
import ssl
from ipaddress import ip_address

import httpcore2
import pytest

from foveate.core.errors import UrlFailed
from foveate.core.url_hosts import read_host
from foveate.gateway.fetching.connection import (
    HEAD_READ_BYTES,
    MAX_ADDRESSES,
    MAX_HEAD_BYTES,
    BoundedHeadStream,
    Connector,
    HeadLimit,
    PinnedNetwork,
    remote_failures,
)
from foveate.gateway.fetching.url_rules import FetchTarget
from tests.support.remote_files import RoutedNetwork, file_answer, file_server

pytestmark = pytest.mark.anyio
ADDRESSES = [ip_address(f"93.184.216.{number}") for number in range(1, 10)]


async def test_a_connection_goes_to_a_pinned_address_whatever_the_name() -> None:
    async with file_server({}) as files:
        network = RoutedNetwork(files.port, dead=["93.184.216.1"])
        stream = await PinnedNetwork(ADDRESSES, network).connect_tcp("127.0.0.1", 443)
        await stream.aclose()
    assert network.connected == [("93.184.216.1", 443), ("93.184.216.2", 443)]


async def test_few_addresses_are_tried() -> None:
    network = RoutedNetwork(9, dead=[str(address) for address in ADDRESSES])
    with pytest.raises(httpcore2.ConnectError):
        await PinnedNetwork(ADDRESSES, network).connect_tcp("images.example.org", 80)
    assert len(network.connected) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("images.example.org", 80, b"host: images.example.org\r\n"),
        ("images.example.org", 8080, b"host: images.example.org:8080\r\n"),
        ("8.8.8.8", 80, b"host: 8.8.8.8\r\n"),
        ("[2606:2800::1]", 80, b"host: [2606:2800::1]\r\n"),
        ("[2606:2800::1]", 8080, b"host: [2606:2800::1]:8080\r\n"),
    ],
)
async def test_the_host_of_the_request_is_that_of_the_url(host: str, port: int, line: bytes) -> None:
    async with file_server({"/a?b": file_answer(b"file")}) as files:
        target = FetchTarget("http", read_host(host), port, "/a?b")
        async with Connector(network=RoutedNetwork(files.port)).get(target, ADDRESSES) as response:
            assert (response.status, await response.aread()) == (200, b"file")
    assert line in files.heads[0]
    assert files.heads[0].lower().count(b"host:") == 1


async def test_a_head_is_read_in_small_pieces_and_its_file_in_large_ones() -> None:
    """All bytes of one read are parsed at once, on the event loop."""
    head = HeadLimit()
    async with file_server({"/": file_answer(bytes(2 * MAX_HEAD_BYTES))}) as files:
        network = RoutedNetwork(files.port)
        stream = BoundedHeadStream(await network.connect_tcp("images.example.org", 80), head)
        await stream.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.05)
        assert len(await stream.read(2**16)) <= HEAD_READ_BYTES
        head.complete = True
        sizes = [len(await stream.read(2**16)) for _ in range(2)]
        assert max(sizes) > HEAD_READ_BYTES
        head.complete, head.read = False, MAX_HEAD_BYTES + 1
        with pytest.raises(httpcore2.RemoteProtocolError):
            await stream.read(2**16)
        await stream.aclose()


def test_headers_of_answers_are_not_logged() -> None:
    logging.getLogger("httpcore2").setLevel(logging.DEBUG)
    Connector()
    assert not logging.getLogger("httpcore2.http11").isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpcore2.ConnectError("93.184.216.34 refused"), "does not accept the connection"),
        (httpcore2.ConnectTimeout(), "does not accept the connection"),
        (httpcore2.RemoteProtocolError("Server disconnected"), "no valid HTTP"),
        (httpcore2.LocalProtocolError(), "no valid HTTP"),
        (httpcore2.ReadError(), "ended early"),
        (httpcore2.WriteError(), "ended early"),
        (httpcore2.ReadTimeout(), "ended early"),
    ],
)
def test_failures_are_one_sentence(error: Exception, words: str) -> None:
    with pytest.raises(UrlFailed, match=words) as failed, remote_failures():
        raise error
    assert "93.184" not in failed.value.detail


def test_a_bad_certificate_is_named() -> None:
    with pytest.raises(UrlFailed, match="the TLS certificate"), remote_failures():
        raise httpcore2.ConnectError from ssl.SSLCertVerificationError()
