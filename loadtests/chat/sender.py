"""A process that sends chats with large pictures to a server, and asks meanwhile whether it is ready.

`python -m loadtests.chat.sender PORT SECONDS FILE...` opens one connection for each file, which holds the
JSON body of a request, and prints one JSON object.
"""

import asyncio
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

from loadtests.closed_loop import drive

READY_INTERVAL_S = 0.05


def chat_request(body: bytes) -> bytes:
    """The bytes of one POST."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def ready_times(port: int, stop: threading.Event) -> list[float]:
    """Seconds of each look at /readyz until `stop` is set. Raises HTTPError once the server is not ready."""
    times: list[float] = []
    while not stop.wait(READY_INTERVAL_S):
        started = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as response:
            response.read()
        times.append(time.perf_counter() - started)
    return times


async def send(port: int, seconds: float, bodies: list[bytes]) -> dict[str, object]:
    """Send chats in a closed loop on one connection for each body."""
    stop = threading.Event()
    ready = asyncio.create_task(asyncio.to_thread(ready_times, port, stop))
    try:
        results = await asyncio.gather(*(drive(port, chat_request(body), 1, seconds) for body in bodies))
    finally:
        stop.set()
    return {
        "answers_s": [latency for result in results for latency in result.latencies_s],
        "failures": sum(result.failures for result in results),
        "ready_s": await ready,
    }


if __name__ == "__main__":
    files = [Path(name).read_bytes() for name in sys.argv[3:]]
    print(json.dumps(asyncio.run(send(int(sys.argv[1]), float(sys.argv[2]), files))))
