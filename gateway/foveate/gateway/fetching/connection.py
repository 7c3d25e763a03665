"""One GET request over a connection to a checked address.

httpcore2 sends what it is given and does nothing else: no redirects, cookies, credentials, proxies from the
environment or decompression. Its import takes 50 ms, so this module is imported only where URLs are fetched.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

import httpcore2

from foveate.core.errors import UrlFailed
from foveate.core.url_hosts import Address
from foveate.gateway.fetching.url_rules import FetchTarget

CONNECT_S = 5.0
"""Seconds for a connection to one address. After it, the next one is tried."""
MAX_ADDRESSES = 4
"""Addresses of a host that are tried at most."""
MAX_HEAD_BYTES, HEAD_READ_BYTES = 64 * 1024, 4096
"""Bytes before the end of a head, interim responses included, and of one read of them. All that was read is
parsed at once, on the event loop: 64 kB of interim responses would block it for a tenth of a second."""
REQUEST_HEADERS = (
    ("user-agent", f"foveate/{version('foveate')}"),
    ("accept", "image/*, video/*, */*;q=0.1"),
    ("accept-encoding", "identity"),
    ("connection", "close"),
)


class HeadLimit:
    """Counts the bytes of one answer until its head is complete."""

    def __init__(self) -> None:
        self.read, self.complete = 0, False


class BoundedHeadStream(httpcore2.AsyncNetworkStream):
    """A connection that is read in small pieces, and not without end, until a head is complete."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, head: HeadLimit) -> None:
        self.stream, self.head = stream, head

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Bytes of the answer. Raises RemoteProtocolError for a head that is too long."""
        if self.head.complete:
            return await self.stream.read(max_bytes, timeout)
        if self.head.read > MAX_HEAD_BYTES:
            raise httpcore2.RemoteProtocolError("the head of the answer is too long")
        data = await self.stream.read(min(max_bytes, HEAD_READ_BYTES), timeout)
        self.head.read += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send bytes."""
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        """The same connection under TLS."""
        return BoundedHeadStream(
            await self.stream.start_tls(ssl_context, server_hostname, timeout), self.head
        )

    def get_extra_info(self, info: str) -> Any:
        """What the connection says about itself."""
        return self.stream.get_extra_info(info)


class PinnedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to given addresses, whatever the name of the host resolves to now."""

    def __init__(self, addresses: Sequence[Address], network: httpcore2.AsyncNetworkBackend) -> None:
        """network: opens the connections."""
        self.addresses, self.network, self.head = addresses, network, HeadLimit()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address that accepts one. host: not used. Raises ConnectError."""
        failure: Exception = httpcore2.ConnectError("no address")
        for address in self.addresses[:MAX_ADDRESSES]:
            try:
                stream = await self.network.connect_tcp(str(address), port, timeout=CONNECT_S)
                return BoundedHeadStream(stream, self.head)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class Connector:
    """Opens connections to fetch targets."""

    def __init__(
        self, tls: ssl.SSLContext | None = None, network: httpcore2.AsyncNetworkBackend | None = None
    ) -> None:
        """tls: None: certificates are verified against those of the system. network: None: TCP."""
        self.tls = tls or httpcore2.default_ssl_context()
        self.network = network or httpcore2.AnyIOBackend()
        # At level debug, it logs the headers of answers: their locations may hold signatures.
        logging.getLogger("httpcore2").setLevel(logging.INFO)

    @asynccontextmanager
    async def get(
        self, target: FetchTarget, addresses: Sequence[Address]
    ) -> AsyncIterator[httpcore2.Response]:
        """The answer of the target's host at one of these addresses; its body is read from `aiter_stream`.

        The name in the URL is the host of the request and of the certificate. Raises UrlFailed.
        """
        scheme, host = target.scheme.encode(), target.host.name.encode()
        url = httpcore2.URL(scheme=scheme, host=host, port=target.port, target=target.path)
        headers = [("host", target.authority), *REQUEST_HEADERS]
        network = PinnedNetwork(addresses, self.network)
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(scheme, host, target.port),
            ssl_context=self.tls,
            network_backend=network,
        )
        with remote_failures():
            async with connection, connection.stream("GET", url, headers=headers) as response:
                network.head.complete = True
                yield response


@contextmanager
def remote_failures() -> Iterator[None]:
    """Turns failures of the remote side into UrlFailed. Its detail names no address."""
    try:
        yield
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise UrlFailed("the TLS certificate of the URL's host is not valid") from error
        raise UrlFailed("the URL's host does not accept the connection") from error
    except httpcore2.ProtocolError as error:
        raise UrlFailed("the URL's host sent no valid HTTP, or ended its answer early") from error
    except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise UrlFailed("the connection to the URL's host ended early") from error
