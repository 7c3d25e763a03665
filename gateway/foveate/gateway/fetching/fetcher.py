"""The guarded fetcher of URLs: one path for all routes, bounded in bytes, time and number."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from foveate.core.errors import (
    BodyTooLarge,
    BodyTooSlow,
    DeadlineExceeded,
    Overloaded,
    UrlFailed,
    UrlRefused,
)
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.body import read_body
from foveate.gateway.decoding import SMALL_BYTES, Decoding
from foveate.gateway.fetching.data_url import decode_data_url, is_data_url
from foveate.gateway.fetching.resolver import LookUp, Resolver, look_up
from foveate.gateway.fetching.url_rules import FetchTarget, UrlRules
from foveate.gateway.limits import Permit, SpoolBudget, deadline_timeout
from foveate.gateway.spool import Medium, spool_body

if TYPE_CHECKING:
    import httpcore2

    from foveate.gateway.fetching.connection import Connector

M = TypeVar("M", bound=Medium)
ReadFile = Callable[[AsyncIterator[bytes], str], Awaitable[M]]
"""Reads a file from its chunks and the text of its content-length."""
MAX_REDIRECTS = 3
MANY_CHUNKS, MIN_CHUNK_BYTES = 1024, 512
"""A file of more chunks than this needs this many bytes in a chunk, on average: each one takes the event loop
60 microseconds, and a file of one-byte chunks all of its time."""
REDIRECTS = (301, 302, 303, 307, 308)
OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (UrlRefused, "refused"),
    (BodyTooLarge, "too_large"),
    (DeadlineExceeded, "expired"),
    (Overloaded, "overloaded"),
    (asyncio.CancelledError, "cancelled"),
)
"""Values of the label `outcome` of fetches that end with these errors; all others have failed."""


class UrlFetcher:
    """Fetches media from the URLs that the settings allow, and decodes data: URLs.

    A host is looked up once, each of its addresses is checked, and the connection goes to a checked one.
    Redirects are checked as new URLs.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        spool_budget: SpoolBudget,
        decoding: Decoding,
        *,
        look_up: LookUp = look_up,
        network: "httpcore2.AsyncNetworkBackend | None" = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """look_up, network and tls replace the system's resolver, TCP, and the system's certificates."""
        self.rules = UrlRules.of(settings)
        self._timeout_s, self._max_fetches = settings.url_timeout_s, settings.url_fetches
        self._limits = f"{settings.max_body_bytes} bytes for an image, {settings.max_video_bytes} for a clip"
        self._metrics, self._spool_budget, self._decoding = metrics, spool_budget, decoding
        self._slots = asyncio.Semaphore(settings.url_fetches)
        self._resolver = Resolver(settings.url_fetches, look_up)
        self._connector = None if self.rules.off else connector(tls, network)

    @asynccontextmanager
    async def open(self, url: str, permit: Permit, deadline: float | None = None) -> AsyncIterator[Medium]:
        """The image or clip at the URL. A large clip is a file, which exists while the context is open.

        permit: of the request; its limits apply, and it counts the bytes. deadline: monotonic clock seconds.
        Raises UrlRefused, UrlFailed, BodyTooLarge, and the errors of limits: DeadlineExceeded, Unavailable.
        """
        if is_data_url(url):
            yield await self._decoded(url, permit, deadline)
            return
        async with AsyncExitStack() as files:

            async def read(chunks: AsyncIterator[bytes], length: str) -> Medium:
                spool = spool_body(chunks, length, permit.part(), self._spool_budget, clip=False)
                return await files.enter_async_context(spool)

            yield await self._fetched(url, deadline, read)

    async def fetch_image(self, url: str, permit: Permit, deadline: float | None = None) -> bytes:
        """As `open`, but a file over the limit for images is refused, and nothing is written to disk."""
        if is_data_url(url):
            return await self._decoded(url, permit, deadline)
        return await self._fetched(url, deadline, partial(read_image, permit.part()))

    async def _decoded(self, url: str, permit: Permit, deadline: float | None) -> bytes:
        if len(url) <= SMALL_BYTES:
            data = decode_data_url(url)
        else:
            async with deadline_timeout(deadline):
                data = await self._decoding.run(partial(decode_data_url, url))
        if not data:
            raise UrlFailed("the data: URL is empty; send an image or a clip")
        permit.check(len(data))
        return data

    async def _fetched(self, url: str, deadline: float | None, read: ReadFile[M]) -> M:
        """What `read` makes of the file at an http URL, within the limits of time and number."""
        with self._recorded():
            target, started = self.rules.check(url), False
            try:
                async with deadline_timeout(deadline, self._timeout_s), self._slots:
                    started = True
                    medium = await self._follow(target, read)
            except BodyTooSlow:
                if not started:
                    raise Overloaded(
                        f"the server fetches {self._max_fetches} other URLs, its limit; retry later"
                    ) from None
                raise UrlFailed(
                    f"the file at the URL did not arrive within {self._timeout_s:g} s, the server's limit"
                ) from None
            except BodyTooLarge:
                raise BodyTooLarge(
                    f"the file at the URL is over the server's limit: {self._limits}"
                ) from None
            if not medium:
                raise UrlFailed("the file at the URL is empty")
            return medium

    async def _follow(self, target: FetchTarget, read: ReadFile[M]) -> M:
        """Follow redirects to the file, and read it."""
        if self._connector is None:
            raise RuntimeError("the rules allow no URL")
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._resolver.resolve(target)
            async with self._connector.get(target, addresses) as response:
                location = redirect_location(response)
                if location is None:
                    length = check_file(response)
                    async with aclosing(self._counted(response.aiter_stream())) as chunks:
                        return await read(chunks, length)
            target = self.rules.redirected(target, location)
        raise UrlRefused(f"the URL redirects over {MAX_REDIRECTS} times")

    async def _counted(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        count = size = 0
        async with aclosing(chunks):
            async for chunk in chunks:
                count, size = count + 1, size + len(chunk)
                if count > MANY_CHUNKS and size < count * MIN_CHUNK_BYTES:
                    raise UrlFailed("the URL's host sent the file in too many small chunks")
                self._metrics.url_bytes.inc(len(chunk))
                yield chunk

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Count the fetch with its outcome and its seconds."""
        started, outcome = monotonic(), "failed"
        try:
            yield
            outcome = "ok"
        except BaseException as error:
            outcome = next((name for kind, name in OUTCOMES if isinstance(error, kind)), "failed")
            raise
        finally:
            self._metrics.url_fetches.labels(outcome).inc()
            self._metrics.url_seconds.observe(monotonic() - started)

    def close(self) -> None:
        """Stop the threads without waiting for them."""
        self._resolver.close()


def connector(tls: ssl.SSLContext | None, network: "httpcore2.AsyncNetworkBackend | None") -> "Connector":
    """The connector, whose HTTP library is imported only now."""
    from foveate.gateway.fetching.connection import Connector

    return Connector(tls, network)


async def read_image(permit: Permit, chunks: AsyncIterator[bytes], length: str) -> bytes:
    """The whole file in memory, within the limit for images."""
    return await read_body(chunks, length, permit)


def redirect_location(response: "httpcore2.Response") -> bytes | None:
    """The target of a redirect; None for any other answer."""
    if response.status not in REDIRECTS:
        return None
    return next((value for name, value in response.headers if name.lower() == b"location"), None)


def check_file(response: "httpcore2.Response") -> str:
    """The content-length of an answer that is a file, 0 without one. Raises UrlFailed for other answers."""
    if response.status != 200:
        raise UrlFailed(f"the URL's host answered with status {response.status}")
    headers = {name.lower(): value for name, value in response.headers}
    if headers.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
        raise UrlFailed("the URL's host sent the file compressed, which the server did not ask for")
    return headers.get(b"content-length", b"0").decode("latin-1")
