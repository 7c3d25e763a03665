"""The lag of the gateway's event loop while it decodes large pictures of chats."""

import asyncio
import base64
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import server
from foveate.models.vlm.runner import ChatRunner
from loadtests.decode import photograph
from loadtests.report import Figures

log = logging.getLogger("loadtests.chat")
SIZE = 4000, 3000
"""Of the pictures, in pixels."""
SENDER = "loadtests.chat.sender"
CONNECTIONS, SECONDS, IDLE_S = 4, 8.0, 2.0
INTERVAL_S = 0.005
"""The loop is asked to wake a task so often."""


async def record_lag(lags_s: list[float]) -> None:
    """Append how late the loop wakes this task, until it is cancelled."""
    while True:
        due = time.perf_counter() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        lags_s.append(max(0.0, time.perf_counter() - due))


@asynccontextmanager
async def listening(runner: ChatRunner) -> AsyncIterator[int]:
    """The port of a server of this process. It keeps nothing of pictures, so that each one is computed."""
    settings = Settings(
        port=0, models=(runner.card.name,), cache_bytes=0, chat_feature_bytes=0, chat_prefix_bytes=0
    )
    metrics = Metrics()
    cluster = LocalCluster([lambda: runner], metrics, chat_feature_bytes=0, chat_prefix_bytes=0)
    running = server(create_app(cluster, settings, metrics), cluster, settings)
    serving = asyncio.create_task(running.serve())
    while not running.started:  # noqa: ASYNC110 -- there is no event for it
        await asyncio.sleep(INTERVAL_S)
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        await serving


def body(model: str, jpeg: bytes) -> bytes:
    """The body of a request about a picture."""
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "what is in the picture?"},
    ]
    messages = [{"role": "user", "content": parts}]
    return json.dumps({"model": model, "max_tokens": 32, "messages": messages}).encode()


def measure(
    runner: ChatRunner, size: tuple[int, int] = SIZE, seconds: float = SECONDS, idle_s: float = IDLE_S
) -> Figures:
    """Lag of the loop at rest and under load, with the latencies of the load. size: of the pictures."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.json") for number in range(CONNECTIONS)]
        for number, file in enumerate(files):
            file.write_bytes(body(runner.card.name, photograph(*size, seed=number)))
        return asyncio.run(_measure(runner, files, seconds, idle_s))


async def _measure(runner: ChatRunner, files: list[Path], seconds: float, idle_s: float) -> Figures:
    idle: list[float] = []
    loaded: list[float] = []
    async with listening(runner) as port:
        await _sent(port, 0.0, files)  # one chat on each connection prepares kernels
        for lags_s, load_s in ((idle, 0.0), (loaded, seconds)):
            recorder = asyncio.create_task(record_lag(lags_s))
            result = await _sent(port, load_s, files) if load_s else await asyncio.sleep(idle_s, {})
            recorder.cancel()
    if result["failures"]:
        raise RuntimeError(f"{result['failures']} chats failed")
    figures = {
        "event_loop_lag_p99_ms": _percentile(loaded, 99),
        "event_loop_lag_p50_ms": _percentile(loaded, 50),
        "event_loop_lag_max_ms": _percentile(loaded, 100),
        "event_loop_lag_idle_p99_ms": _percentile(idle, 99),
        "lag_chats": len(result["answers_s"]),
        "lag_chat_p50_ms": _percentile(result["answers_s"], 50),
        "lag_ready_p99_ms": _percentile(result["ready_s"], 99),
        "lag_body_megabytes": files[0].stat().st_size / 1e6,
    }
    log.info("event loop: %s", figures)
    return {key: round(value, 3) for key, value in figures.items()}


async def _sent(port: int, seconds: float, files: list[Path]) -> dict[str, list[float]]:
    """What a sender in a process of its own measures: its work must not count as lag."""
    command = [sys.executable, "-m", SENDER, str(port), str(seconds), *map(str, files)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"the sender failed with status {process.returncode}")
    result: dict[str, list[float]] = json.loads(output)
    return result


def _percentile(seconds: list[float], percent: float) -> float:
    """In milliseconds; 0 for no values."""
    return 1e3 * float(np.percentile(seconds, percent)) if seconds else 0.0
