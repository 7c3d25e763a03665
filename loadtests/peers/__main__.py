"""Every server in turn, and what came of it: writes docs/benchmarks/peers.{json,md}."""

import argparse
import logging
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError

from foveate.core.errors import SetupError
from foveate.models.loading.load import find_family_profile
from foveate.models.loading.machine import current_setting
from foveate.models.weights.hub import load
from loadtests.load.pictures import catalogue
from loadtests.overhead import fast_precision
from loadtests.peers.environment import python
from loadtests.peers.measure import Figures, Setup, of_server, raw
from loadtests.peers.model import saved
from loadtests.peers.page import page
from loadtests.peers.running import SERVERS
from loadtests.report import write

log = logging.getLogger("loadtests.peers")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "foveate" / "peers"
Failed = dict[str, str]


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and with it whatever server runs
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    options.cache.mkdir(parents=True, exist_ok=True)
    setup = prepare(options)
    names, failed = install(options.servers.split(","), options.cache)
    rounds = [one_round(setup, names, options.cache, failed, seed) for seed in range(options.rounds)]
    figures, measured = medians(rounds), [name for name in names if name not in failed]
    terms = f"{setup.precision}, {setup.size} pictures, {setup.seconds:g} s each, medians of {options.rounds}"
    body = page(figures, measured, setup.promises_ms, setup.loads, failed, terms)
    print(body if options.draft else write("peers", figures, body).read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    parser.add_argument("--servers", default=",".join(SERVERS), help="which (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="weights, environments, logs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each single run")
    parser.add_argument("--promises", default="500,250", help="milliseconds (%(default)s)")
    parser.add_argument("--loads", default="0.5,0.8,1.2,2", help="times the raw rate (%(default)s)")
    parser.add_argument("--pictures", choices=("scene", "640x480"), default="640x480")
    parser.add_argument("--precision", default=fast_precision())
    parser.add_argument("--draft", action="store_true", help="print the page, write nothing")
    options = parser.parse_args()
    unknown = sorted(set(options.servers.split(",")) - set(SERVERS))
    if unknown:
        parser.error(f"there is no server {unknown[0]!r}; there are {', '.join(SERVERS)}")
    return options


def prepare(options: argparse.Namespace) -> Setup:
    """The weights on disk with what cheaper plans are worth here, the pictures in memory."""
    weights = str(saved(options.cache))
    if find_family_profile(weights, load(weights), current_setting("cpu", options.precision))[0] is None:
        log.info("measuring what cheaper plans of these weights are worth, once")
        command = [sys.executable, "-m", "foveate.gateway.cli", "profile", weights, "--with", "vit-xs"]
        subprocess.run([*command, "--precision", options.precision], check=True)  # noqa: S603
    return Setup(
        weights=weights,
        precision=options.precision,
        pictures=catalogue(options.pictures, 0, 0),
        size=options.pictures,
        seconds=options.seconds,
        promises_ms=tuple(map(float, options.promises.split(","))),
        loads=tuple(map(float, options.loads.split(","))),
        logs=options.cache,
    )


def install(wanted: Sequence[str], cache: Path) -> tuple[list[str], Failed]:
    """The servers that can be had here, and why the others cannot."""
    failed: Failed = {}
    for name in wanted:
        try:
            python(SERVERS[name], cache)
        except CalledProcessError as error:
            failed[name] = f"its packages did not install (status {error.returncode})"
            log.warning("%s: %s", name, failed[name])
    return [name for name in wanted if name not in failed], failed


def one_round(setup: Setup, names: Sequence[str], cache: Path, failed: Failed, seed: int) -> Figures:
    """The raw loop, then each server that has not failed; a server that fails is added to `failed`."""
    figures = raw(setup)
    log.info("round %d: raw %.1f/s", seed + 1, figures["raw_per_s"])
    for name in names:
        if name in failed:
            continue
        try:
            own = of_server(SERVERS[name], python(SERVERS[name], cache), setup, figures["raw_per_s"], seed)
        except (SetupError, RuntimeError, TimeoutError, OSError, CalledProcessError) as error:
            failed[name] = f"{error}" or type(error).__name__
            log.warning("%s failed: %s", name, error)
            continue
        figures |= own
        log.info("%s: %s", name, {key: round(own[key], 3) for key in own if key.endswith(HEADLINES)})
    return figures


HEADLINES = ("closed_1_per_s", "closed_32_per_s", "_attainment")


def medians(rounds: Sequence[Figures]) -> Figures:
    """Key by key, over the rounds that have it."""
    keys = dict.fromkeys(key for figures in rounds for key in figures)
    return {key: round(statistics.median(f[key] for f in rounds if key in f), 4) for key in keys}


if __name__ == "__main__":
    main()
