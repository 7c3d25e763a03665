"""A closed-loop HTTP client with little overhead: each connection sends its next request after the answer."""

import asyncio
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class ClosedLoopResult:
    """Latencies and failures of one run."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def per_second(self) -> float:
        """Answers with status 200 per second."""
        return len(self.latencies_s) / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency in milliseconds. Raises IndexError if nothing was answered."""
        ordered = sorted(self.latencies_s)
        return ordered[len(ordered) // 2] * 1e3


def request_bytes(path: str, body: bytes) -> bytes:
    """The bytes of one POST with a JPEG body."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/jpeg\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """Writes the request and reads the answer in a loop until the end time."""

    def __init__(self, request: bytes, until: float, result: ClosedLoopResult) -> None:
        self.request, self.until, self.result = request, until, result
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        if self.sent >= self.until:
            self.transport.close()
            return
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Count a complete answer and send the next request."""
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        if not self._is_complete(end):
            return
        if self.buffer.startswith(b"HTTP/1.1 200"):
            self.result.latencies_s.append(time.perf_counter() - self.sent)
        else:
            self.result.failures += 1
        self.buffer.clear()
        self._send()

    def _is_complete(self, end: int) -> bool:
        """Whether the buffer holds the full body; `end` is the end of the head."""
        at = self.buffer.find(b"content-length: ", 0, end)
        if at < 0:  # chunked encoding ends with an empty chunk
            return self.buffer.endswith(b"0\r\n\r\n")
        at += len(b"content-length: ")
        return len(self.buffer) >= end + 4 + int(self.buffer[at : self.buffer.find(b"\r", at)])

    def connection_lost(self, exc: Exception | None) -> None:
        """End the loop of this connection."""
        if not self.done.done():
            self.done.set_result(None)


async def drive(port: int, request: bytes, connections: int, seconds: float) -> ClosedLoopResult:
    """Keep `connections` requests in flight to 127.0.0.1 for `seconds`, then wait for the last answers."""
    loop, result = asyncio.get_running_loop(), ClosedLoopResult()
    started = time.perf_counter()
    protocols = []
    try:
        for _ in range(connections):
            _, protocol = await loop.create_connection(
                lambda: _Connection(request, started + seconds, result), "127.0.0.1", port
            )
            protocols.append(protocol)
        await asyncio.gather(*(protocol.done for protocol in protocols))
    finally:
        for protocol in protocols:
            protocol.transport.close()  # still open if this is cancelled
    result.seconds = time.perf_counter() - started
    return result
