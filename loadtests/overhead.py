"""What serving costs on top of the model: `make bench-overhead`."""

import argparse
import asyncio
import io
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveate.core.plan import Precision
from foveate.gateway.media.image import decode_image
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.runners.image import TorchRunner
from loadtests.closed_loop import LoopResult, drive, request_bytes
from loadtests.report import UNCACHED, table, write

MODEL = "random:vit_small_patch16_224"
CONCURRENCY = (1, 8, 32)
RAW_BATCH = 8
"""Of the raw loop at most: larger ones are slower on a processor."""
Figures = dict[str, float]


def picture(size_bytes: int = 108_000) -> bytes:
    """A 640x480 JPEG of about this size: smooth shapes under noise, as photographs are."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 9, (480, 640, 3))
    image = Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
    for quality in range(95, 30, -1):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() <= size_bytes:
            break
    return out.getvalue()


def fast_precision() -> Precision:
    """bfloat16 where the processor computes in it, as a trained model would be served."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def raw_loop(runner: TorchRunner, jpeg: bytes, concurrency: int, seconds: float) -> LoopResult:
    """Decode and forward with nothing around them, in batches as large as that concurrency allows."""
    result, spec = LoopResult(), runner.card.input
    if spec is None:
        raise ValueError("the model takes no pictures")
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        batch = min(concurrency, RAW_BATCH)
        pixels = [decode_image(jpeg, spec, runner.full.image_size, 10**8) for _ in range(batch)]
        runner.run(runner.stack(pixels, runner.full), runner.full)
        result.latencies_s += [time.perf_counter() - begun] * batch
    result.seconds = time.perf_counter() - started
    return result


@contextmanager
def served(*command: str) -> Iterator[int]:
    """A server in a process of its own, ready; ended by its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", *(part.format(port=port) for part in command)], env=os.environ | UNCACHED
    )
    try:
        wait_ready(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def wait_ready(port: int, process: subprocess.Popen[bytes], limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def load_server(port: int, path: str, jpeg: bytes, concurrency: int, seconds: float) -> LoopResult:
    result = asyncio.run(drive(port, request_bytes(path, jpeg), concurrency, seconds))
    if result.failures:
        raise SystemExit(f"{result.failures} requests failed at concurrency {concurrency}")
    return result


def model_round(runner: TorchRunner, port: int, jpeg: bytes, seconds: float) -> Figures:
    """Raw loop and server side by side at each concurrency."""
    figures: Figures = {}
    for c in CONCURRENCY:
        raw = raw_loop(runner, jpeg, c, seconds)
        server = load_server(port, "/classify?top_k=5", jpeg, c, seconds)
        figures[f"raw_per_s_c{c}"], figures[f"server_per_s_c{c}"] = raw.per_second, server.per_second
        figures[f"throughput_ratio_c{c}"] = server.per_second / raw.per_second
        figures[f"server_p50_ms_c{c}"] = server.p50_ms
        if c == 1:
            figures["raw_p50_ms_c1"] = raw.p50_ms
            figures["added_p50_ms_c1"] = server.p50_ms - raw.p50_ms
    return figures


def noop_round(noop_port: int, echo_port: int, jpeg: bytes, seconds: float) -> Figures:
    """The no-op model against the bare application, at 32 connections and at one."""
    echo = load_server(echo_port, "/echo", jpeg, 32, seconds)
    noop = load_server(noop_port, "/classify", jpeg, 32, seconds)
    lone_echo = load_server(echo_port, "/echo", jpeg, 1, 2)
    lone_noop = load_server(noop_port, "/classify", jpeg, 1, 2)
    return {
        "noop_rps": noop.per_second,
        "fastapi_rps": echo.per_second,
        "noop_ratio_fastapi": noop.per_second / echo.per_second,
        "noop_p50_ms_c1": lone_noop.p50_ms,
        "fastapi_p50_ms_c1": lone_echo.p50_ms,
    }


def medians(rounds: list[Figures]) -> Figures:
    return {key: round(statistics.median(r[key] for r in rounds), 4) for key in rounds[0]}


def measure(precision: Precision, repeats: int, seconds: float) -> Figures:
    """All figures, medians over the repeats. The model's round ends before the no-op's begins."""
    jpeg = picture()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    runner = ImageModelLoader().load(MODEL, LoadOptions(precision))
    serve = ("foveate.gateway.cli", "serve", "--model", MODEL, "--precision", precision, "--port", "{port}")
    with served(*serve) as port:
        load_server(port, "/classify", jpeg, 8, 2)
        model = [model_round(runner, port, jpeg, seconds) for _ in range(repeats)]
    with served("loadtests.noop", "{port}") as noop, served("loadtests.echo", "{port}") as echo:
        load_server(noop, "/classify", jpeg, 8, 1)
        light = [noop_round(noop, echo, jpeg, seconds / 2) for _ in range(repeats)]
    return medians(model) | medians(light)


def page(f: Figures, precision: str, repeats: int, seconds: float, rows: list[list[str]]) -> str:
    """The Markdown beside the JSON."""
    return f"""# What serving costs

ViT-S/16 geometry with random weights in {precision}; a 640x480 JPEG of {len(picture()) // 1000} kB in,
top 5 out. The raw loop decodes and runs batches of min(concurrency, {RAW_BATCH}) in one process with no HTTP.
The server is `foveate serve` in another process, driven over keep-alive connections by a closed-loop
client that shares the machine's cores with it; nothing is subtracted for the client. Each figure is
the median of {repeats} interleaved rounds of {seconds:g} s. `make bench-overhead` repeats it.

{table(["concurrency", "raw loop /s", "server /s", "ratio", "server p50 ms"], rows)}

A lone request: {f["server_p50_ms_c1"]:.2f} ms at the client against {f["raw_p50_ms_c1"]:.2f} ms raw,
{f["added_p50_ms_c1"]:.2f} ms added as the median of the rounds' differences (goal: at most 3).

At 8 connections the server gives some speed away for latency: when a batch ends, the first client to
come back is served alone and at once, so that batches of 1 and of 7 take turns where the raw loop
always runs 8 (goal at 32: a ratio of at least 0.95).

A model that does nothing, through the whole gateway and engine, 32 connections: {f["noop_rps"]:.0f}
requests/s, {f["noop_ratio_fastapi"]:.0%} of a bare FastAPI application that reads the body
({f["fastapi_rps"]:.0f}; goal: at least 60%). A lone one takes {f["noop_p50_ms_c1"]:.2f} ms against
{f["fastapi_p50_ms_c1"]:.2f} ms."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--precision", default=fast_precision())
    args = parser.parse_args()
    figures = measure(args.precision, args.repeats, args.seconds)
    rows = [
        [str(c), f"{figures[f'raw_per_s_c{c}']:.1f}", f"{figures[f'server_per_s_c{c}']:.1f}",
         f"{figures[f'throughput_ratio_c{c}']:.3f}", f"{figures[f'server_p50_ms_c{c}']:.1f}"]
        for c in CONCURRENCY
    ]  # fmt: skip
    body = page(figures, args.precision, args.repeats, args.seconds, rows)
    print(write("overhead", figures, body).read_text())


if __name__ == "__main__":
    main()
