"""A closed-loop HTTP client that costs little: each connection sends again as soon as it was answered."""

import asyncio
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class LoopResult:
    """What one run of the client saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def p50_ms(self) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[len(ordered) // 2] * 1e3


def request_bytes(path: str, body: bytes) -> bytes:
    """One POST, ready to be written to a socket again and again."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/jpeg\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """Writes the request, reads one answer, and again until the time is up."""

    def __init__(self, request: bytes, until: float, into: LoopResult) -> None:
        self.request, self.until, self.into = request, until, into
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        if self.sent >= self.until:
            self.transport.close()
            return
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        if not self._whole(end):
            return
        if self.buffer.startswith(b"HTTP/1.1 200"):
            self.into.latencies_s.append(time.perf_counter() - self.sent)
        else:
            self.into.failures += 1
        self.buffer.clear()
        self._send()

    def _whole(self, end: int) -> bool:
        """Whether the body that follows the head, which ends there, has come as far as it was announced."""
        at = self.buffer.find(b"content-length: ", 0, end)
        if at < 0:  # in chunks, the last of them empty
            return self.buffer.endswith(b"0\r\n\r\n")
        at += len(b"content-length: ")
        return len(self.buffer) >= end + 4 + int(self.buffer[at : self.buffer.find(b"\r", at)])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def drive(port: int, request: bytes, connections: int, seconds: float) -> LoopResult:
    """Keep `connections` requests in flight against 127.0.0.1 for that long, then let the last ones end."""
    loop, result = asyncio.get_running_loop(), LoopResult()
    started = time.perf_counter()
    protocols = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: _Connection(request, started + seconds, result), "127.0.0.1", port
        )
        protocols.append(protocol)
    await asyncio.gather(*(protocol.done for protocol in protocols))
    result.seconds = time.perf_counter() - started
    return result
