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
REQUEST_HEADERS = (
    ("user-agent", f"foveate/{version('foveate')}"),
    ("accept", "image/*, video/*, */*;q=0.1"),
    ("accept-encoding", "identity"),
    ("connection", "close"),
)


class PinnedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to given addresses, whatever the name of the host resolves to now."""

    def __init__(self, addresses: Sequence[Address], network: httpcore2.AsyncNetworkBackend) -> None:
        """network: opens the connections."""
        self.addresses, self.network = addresses, network

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
                return await self.network.connect_tcp(str(address), port, timeout=CONNECT_S)
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
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(scheme, host, target.port),
            ssl_context=self.tls,
            network_backend=PinnedNetwork(addresses, self.network),
        )
        with remote_failures():
            async with connection, connection.stream("GET", url, headers=headers) as response:
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
