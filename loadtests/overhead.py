"""Measure the overhead of serving a model: `make bench-overhead`."""

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
from collections.abc import Iterator, Sequence
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
from loadtests.closed_loop import ClosedLoopResult, drive, request_bytes
from loadtests.report import (
    RENDER_HELP,
    UNCACHED,
    Figures,
    Goal,
    cell,
    goal_table,
    read,
    render,
    table,
    write,
)
from loadtests.warm import wait_warm

MODEL = "random:vit_small_patch16_224"
CONCURRENCY = (1, 8, 32)
RAW_BATCH = 8
"""Maximum batch size of the raw loop: larger batches are slower on a CPU."""


def sample_jpeg(size_bytes: int = 108_000) -> bytes:
    """A 640x480 JPEG of about this size: smooth shapes with noise, like a photograph."""
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
    """bf16 if the processor has bfloat16 instructions, else fp32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def raw_loop(runner: TorchRunner, jpeg: bytes, concurrency: int, seconds: float) -> ClosedLoopResult:
    """Decode and forward in a loop, in batches of min(concurrency, RAW_BATCH)."""
    result, spec = ClosedLoopResult(), runner.card.input
    if spec is None:
        raise ValueError("the model takes no images")
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch_started = time.perf_counter()
        batch = min(concurrency, RAW_BATCH)
        pixels = [decode_image(jpeg, spec, runner.full.image_size, 10**8) for _ in range(batch)]
        runner.run(runner.stack(pixels, runner.full), runner.full)
        result.latencies_s += [time.perf_counter() - batch_started] * batch
    result.seconds = time.perf_counter() - started
    return result


@contextmanager
def served(*command: str) -> Iterator[int]:
    """Run `python -m COMMAND` as a server in a separate process and yield its port once it is ready.

    `{port}` in an argument stands for the port. Raises SystemExit if the server does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", *(part.format(port=port) for part in command)], env=os.environ | UNCACHED
    )
    try:
        wait_ready(port, process)
        wait_warm(f"http://127.0.0.1:{port}")
        yield port
    finally:
        process.terminate()
        process.wait(60)


def wait_ready(port: int, process: subprocess.Popen[bytes], limit_s: float = 120) -> None:
    """Wait until /readyz answers 200. Raises SystemExit after `limit_s` or if the process ends."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit(f"the server on port {port} did not become ready within {limit_s:g} s")


def load_server(port: int, path: str, jpeg: bytes, concurrency: int, seconds: float) -> ClosedLoopResult:
    """Drive a server in a closed loop. Raises SystemExit if a request fails."""
    result = asyncio.run(drive(port, request_bytes(path, jpeg), concurrency, seconds))
    if result.failures:
        raise SystemExit(f"{result.failures} requests failed at concurrency {concurrency}")
    return result


def model_round(runner: TorchRunner, port: int, jpeg: bytes, seconds: float) -> Figures:
    """One round: the raw loop and then the server, at each concurrency."""
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
    """One round: the no-op model and the bare application, at 32 connections and at 1."""
    echo = load_server(echo_port, "/echo", jpeg, 32, seconds)
    noop = load_server(noop_port, "/classify", jpeg, 32, seconds)
    single_echo = load_server(echo_port, "/echo", jpeg, 1, 2)
    single_noop = load_server(noop_port, "/classify", jpeg, 1, 2)
    return {
        "noop_rps": noop.per_second,
        "fastapi_rps": echo.per_second,
        "noop_ratio_fastapi": noop.per_second / echo.per_second,
        "noop_p50_ms_c1": single_noop.p50_ms,
        "fastapi_p50_ms_c1": single_echo.p50_ms,
    }


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds that have it."""
    keys = dict.fromkeys(key for figures in rounds for key in figures)
    return {key: round(statistics.median(f[key] for f in rounds if key in f), 4) for key in keys}


def measure(precision: Precision, repeats: int, seconds: float) -> Figures:
    """All figures, as medians over `repeats` rounds; the rounds of the no-op model come second."""
    jpeg = sample_jpeg()
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


GOALS = (
    Goal("p50 added to one request at a time, ms", "added_p50_ms_c1", "at most", 3, "{:.2f}"),
    Goal("throughput at 32 connections, relative to the raw loop", "throughput_ratio_c32", "at least", 0.95,
         "{:.3f}"),
    Goal("no-op model at 32 connections, relative to the bare application", "noop_ratio_fastapi", "at least",
         0.6, "{:.0%}", "{:.0%}"),
)  # fmt: skip


def page(figures: Figures) -> str:
    """The Markdown page."""
    model_rows = [
        [str(c), cell(figures, f"raw_per_s_c{c}", "{:.1f}"), cell(figures, f"server_per_s_c{c}", "{:.1f}"),
         cell(figures, f"throughput_ratio_c{c}", "{:.3f}"), cell(figures, f"raw_p50_ms_c{c}", "{:.2f}"),
         cell(figures, f"server_p50_ms_c{c}", "{:.2f}")]
        for c in CONCURRENCY
    ]  # fmt: skip
    light_rows = [
        ["Foveate with the no-op model", cell(figures, "noop_rps", "{:.0f}"),
         cell(figures, "noop_p50_ms_c1", "{:.2f}")],
        ["bare FastAPI application", cell(figures, "fastapi_rps", "{:.0f}"),
         cell(figures, "fastapi_p50_ms_c1", "{:.2f}")],
    ]  # fmt: skip
    return f"""# Serving overhead

The server is `foveate serve` with ViT-S/16 and random weights, in a separate process. A closed-loop client
sends one 640x480 JPEG of {len(sample_jpeg()) // 1000} kB over keep-alive connections and asks for the top 5
classes. The raw loop is the baseline: it decodes and runs batches of min(connections, {RAW_BATCH}) in one
process without HTTP. The client shares the cores with the server, and nothing is subtracted for it. Each
figure is the median of interleaved rounds; the added p50 is the median of the differences of the rounds.
`make bench-overhead` repeats the bench.

## Goals

{goal_table(GOALS, figures)}

## A model

{table(["connections", "raw loop /s", "server /s", "ratio", "raw p50 ms", "server p50 ms"], model_rows)}

At 8 connections the server trades throughput for latency. When a batch ends, the first client that sends its
next request is served at once and alone, so batches of 1 and of 7 alternate. The raw loop always runs batches
of {RAW_BATCH}.

## A model that does nothing

The whole gateway and engine with a no-op model, and a bare FastAPI application that reads the body.

{table(["server", "requests/s at 32 connections", "p50 ms at 1 connection"], light_rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run (default: %(default)s)")
    parser.add_argument("--precision", default=fast_precision(), help="of the model (default: %(default)s)")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    args = parser.parse_args()
    if args.render:
        print(render("overhead", page(read("overhead"))).read_text())
        return
    figures = measure(args.precision, args.repeats, args.seconds)
    settings = {
        "precision": args.precision,
        "rounds": f"{args.repeats}",
        "seconds per run": f"{args.seconds:g}",
    }
    print(write("overhead", figures, page(figures), settings).read_text())


if __name__ == "__main__":
    main()
