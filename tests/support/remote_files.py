"""A real HTTP server of files on 127.0.0.1, a network that leads to it, and fetchers that use it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpcore2

from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.decoding import Decoding
from foveate.gateway.fetching.fetcher import UrlFetcher
from foveate.gateway.limits import AdmissionLimiter, Permit, SpoolBudget

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""The bytes of an answer, or what writes them."""
PUBLIC = "93.184.216.34"
"""A public address, to which no test connects."""


def file_answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An answer with a file. length: the content-length; None: that of the file."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    """An answer that redirects."""
    return file_answer(b"", f"location: {location}", status=status)


@dataclass
class FileServer:
    """A running server. It closes each connection after one answer."""

    answers: dict[str, Answer]
    """Answers by path with query; others are a 404."""
    heads: list[bytes] = field(default_factory=list)
    """The request lines and headers that arrived."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client has closed a connection."""
    port: int = 0
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the end of the test: answers that go on for ever end."""
    running: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            answer = self.answers.get(head.split()[1].decode(), file_answer(b"", status="404 Not Found"))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await self._until_closed(answer(writer), reader)
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async def _until_closed(self, answering: Awaitable[None], reader: asyncio.StreamReader) -> None:
        """Run what answers until it ends, the client closes the connection, or the test ends."""
        tasks = [asyncio.ensure_future(each) for each in (answering, reader.read(), self.ending.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1].done():
            self.closed.set()
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def file_server(
    answers: Mapping[str, Answer], tls: ssl.SSLContext | None = None
) -> AsyncIterator[FileServer]:
    """A server of these answers by path."""
    files = FileServer(dict(answers))
    server = await asyncio.start_server(files.serve, "127.0.0.1", 0, ssl=tls)
    files.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield files
        finally:
            files.ending.set()
            server.close()
            await asyncio.gather(*files.running)


class RoutedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to a port of this machine in place of public addresses, and keeps what was asked for."""

    def __init__(self, port: int, dead: Sequence[str] = ()) -> None:
        """dead: addresses that accept no connection."""
        self.port, self.dead, self.connected = port, dead, list[tuple[str, int]]()

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        self.connected.append((host, port))
        if host in self.dead:
            raise httpcore2.ConnectError("refused")
        return await httpcore2.AnyIOBackend().connect_tcp("127.0.0.1", self.port)


@dataclass
class Fetching:
    """A fetcher, and what its fetches have used."""

    fetcher: UrlFetcher
    metrics: Metrics
    limiter: AdmissionLimiter
    spool_budget: SpoolBudget
    permit: Permit

    async def image(self, url: str, deadline: float | None = None) -> bytes:
        """The image at a URL."""
        return await self.fetcher.fetch_image(url, self.permit, deadline)

    def counted(self, outcome: str) -> float:
        """The fetches of this outcome."""
        return self.metrics.registry.get_sample_value("foveate_url_fetches_total", {"outcome": outcome}) or 0


@asynccontextmanager
async def fetching(
    look_up: Callable[[str], Sequence[str]] = lambda name: [PUBLIC],
    network: httpcore2.AsyncNetworkBackend | None = None,
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> AsyncIterator[Fetching]:
    """A fetcher with these settings, within one admitted request."""
    chosen, metrics = Settings(**({"url_hosts": ("*",)} | settings)), Metrics()
    limiter = AdmissionLimiter(10, chosen.in_flight_bytes, chosen.max_body_bytes)
    budget = SpoolBudget(chosen.spool_bytes, chosen.max_video_bytes)
    decoding = Decoding(1, HostLoadMonitor(1))
    fetcher = UrlFetcher(chosen, metrics, budget, decoding, look_up=look_up, network=network, tls=tls)
    try:
        with limiter.admit() as permit:
            yield Fetching(fetcher, metrics, limiter, budget, permit)
        assert limiter.bytes == budget.bytes == 0, "bytes are still counted"
    finally:
        fetcher.close()
        decoding.close()
