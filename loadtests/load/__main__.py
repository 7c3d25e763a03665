"""Run open-loop load tests against a running server and write their results."""

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from foveate.core.errors import SetupError
from loadtests.load.headless import run as run_headless
from loadtests.load.load_test import LoadTest
from loadtests.load.machine import raise_file_limit
from loadtests.load.page import page
from loadtests.load.records import count_kinds
from loadtests.load.result import LoadTestRun, as_json
from loadtests.load.spec import Images, add_options, load_images, run_spec, settings_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a server on this machine")
    parser.add_argument(
        "--rate", default="50", help="requests per second; several values make several runs: 25,50,100"
    )
    parser.add_argument("--name", default="", help="the name of the runs in the report")
    parser.add_argument("--json", type=Path, help="file for the figures and all requests")
    parser.add_argument("--html", type=Path, help="file for the report")
    add_options(parser)
    options = parser.parse_args()
    try:
        runs = run_all(options)
    except SetupError as error:
        sys.exit(f"error: {error}")
    for run in runs:
        print(summary(run))
    if options.json:
        options.json.write_bytes(as_json(runs))
    if options.html:
        options.html.write_text(page(runs))


def run_all(options: argparse.Namespace) -> list[LoadTestRun]:
    """One run per rate, in sequence. Raises SetupError."""
    rates = read_rates(options.rate)
    raise_file_limit()
    images = load_images(options)
    return [run_one(options, rate, images, len(rates) > 1) for rate in rates]


def run_one(options: argparse.Namespace, rate: float, images: Images, several: bool) -> LoadTestRun:
    """One run; with several rates, its name includes the rate. Raises SetupError."""
    load_test = LoadTest(run_spec(options, options.url, rate, images))
    load_test.probe()
    run_headless(load_test)
    label = options.name or options.shape
    command = shlex.join(["python", "-m", "loadtests.load", *sys.argv[1:]])
    return load_test.result(
        f"{label} at {rate:g}/s" if several else label, command, settings_of(options, rate)
    )


def read_rates(text: str) -> list[float]:
    """The rates of `--rate`. Raises SetupError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SetupError(
            f"--rate must be a number or several numbers separated by commas, not {text!r}"
        ) from None


def summary(run: LoadTestRun) -> str:
    """One run in two or three lines for a terminal."""
    figures = {name: value for name, value in run.figures().items() if value is not None}
    counts = ", ".join(f"{count} {kind}" for kind, count in count_kinds(run.records).items() if count)
    lines = [
        f"{run.name}: {figures['offered']:g} offered, {counts}; attainment {figures['attainment']:.1%}, "
        f"accuracy {figures.get('accuracy', 0):.1%}",
        f"  generator: {figures['generator_cpu_us_per_request']:.0f} us of processor time per request, "
        f"{figures['generator_core_share']:.0%} of a core; lag {figures['lag_ms_p99']:.1f} ms at p99",
    ]
    if "ttft_ms_p50" in figures:
        lines.insert(1, chat_summary(figures))
    return "\n".join([*lines, f"  warning: {run.warning}"] if run.warning else lines)


def chat_summary(figures: Mapping[str, float]) -> str:
    """The tokens of a run of chats in one line."""
    parts = [
        f"first token {figures['ttft_ms_p50']:.0f} ms at p50, {figures['ttft_ms_p99']:.0f} ms at p99",
        f"{figures['tokens_per_s']:.1f} tokens/s",
        f"right and in time {figures['correct_in_time']:.1%}",
    ]
    if "token_ms_p50" in figures:
        parts.insert(1, f"{figures['token_ms_p50']:.1f} ms per token")
    if "cached_share" in figures:
        parts.append(f"{figures['cached_share']:.0%} of the prompts cached")
    return f"  chats: {'; '.join(parts)}"


if __name__ == "__main__":
    main()
