"""The command: runs at one rate or several against a running server, and what came of them."""

import argparse
import shlex
import sys
from pathlib import Path

from foveate.core.errors import SetupError
from loadtests.load.headless import run as run_headless
from loadtests.load.job import add_options, album, chosen, job
from loadtests.load.machine import more_files
from loadtests.load.page import page
from loadtests.load.pictures import Catalogue
from loadtests.load.records import counted
from loadtests.load.result import Run, as_json
from loadtests.load.sending import Sending


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a server on this machine")
    parser.add_argument("--rate", default="50", help="requests a second; several runs: 25,50,100")
    parser.add_argument("--name", default="", help="what the runs are called in the report")
    parser.add_argument("--json", type=Path, help="where figures and all requests go")
    parser.add_argument("--html", type=Path, help="where the report goes")
    add_options(parser)
    options = parser.parse_args()
    try:
        runs = perform(options)
    except SetupError as error:
        sys.exit(f"error: {error}")
    for run in runs:
        print(summary(run))
    if options.json:
        options.json.write_bytes(as_json(runs))
    if options.html:
        options.html.write_text(page(runs))


def perform(options: argparse.Namespace) -> list[Run]:
    """One run for each rate, one after the other. Raises SetupError."""
    rates = read_rates(options.rate)
    more_files()
    pictures = album(options)
    return [perform_one(options, rate, pictures, len(rates) > 1) for rate in rates]


def perform_one(options: argparse.Namespace, rate: float, pictures: Catalogue, several: bool) -> Run:
    sending = Sending(job(options, options.url, rate, pictures))
    sending.probe()
    run_headless(sending)
    label = options.name or options.shape
    command = shlex.join(["python", "-m", "loadtests.load", *sys.argv[1:]])
    return sending.result(f"{label} at {rate:g}/s" if several else label, command, chosen(options, rate))


def read_rates(text: str) -> list[float]:
    """Raises SetupError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SetupError(f"--rate is a number, or several with commas between them, not {text!r}") from None


def summary(run: Run) -> str:
    """One run in a few lines for a terminal."""
    found = {name: value for name, value in run.figures().items() if value is not None}
    counts = ", ".join(f"{count} {kind}" for kind, count in counted(run.records).items() if count)
    lines = [
        f"{run.name}: {found['offered']:g} offered, {counts}; attainment {found['attainment']:.1%}, "
        f"accuracy {found.get('accuracy', 0):.1%}",
        f"  generator: {found['generator_cpu_us_per_request']:.0f} us of processor time a request, "
        f"{found['generator_core_share']:.0%} of a core; sends {found['lag_ms_p99']:.1f} ms late at p99",
    ]
    return "\n".join([*lines, f"  but {run.doubt}"] if run.doubt else lines)


if __name__ == "__main__":
    main()
