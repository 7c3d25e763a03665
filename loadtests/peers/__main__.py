"""Measure each serving system in turn: writes docs/benchmarks/peers.{json,md}."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError

from foveate.core.errors import SetupError
from loadtests.overhead import medians
from loadtests.peers.environment import python
from loadtests.peers.measure import BenchSetup, measure_server, raw
from loadtests.peers.page import installed, page
from loadtests.peers.running import SERVERS
from loadtests.peers.setup import Failed, add_bench_options, install, prepare, settings_of
from loadtests.report import Figures, left_out, read, render, write

log = logging.getLogger("loadtests.peers")
LOGGED = ("closed_1_per_s", "closed_32_per_s", "_attainment")
"""Endings of the keys that the log shows after each server."""


def main() -> None:
    options = arguments()
    if options.render:
        print(render("peers", page(read("peers"))).read_text())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the running server is stopped too
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    setup = prepare(options)
    names, failed = install(options.servers.split(","), options.cache)
    figures = medians(
        [one_round(setup, names, options.cache, failed, seed) for seed in range(options.rounds)]
    )
    if options.draft:
        print(page(figures))
        return
    measured = [name for name in names if name not in failed]
    settings = settings_of(setup, options.rounds) | installed(measured) | left_out(failed)
    print(write("peers", figures, page(figures), settings).read_text())


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    parser.add_argument("--servers", default=",".join(SERVERS), help="servers to measure (%(default)s)")
    parser.add_argument(
        "--loads", default="0.5,0.8,1.2,2", help="offered rates, as multiples of the raw rate (%(default)s)"
    )
    add_bench_options(parser, seconds=20.0, deadlines="500,250")
    options = parser.parse_args()
    unknown = sorted(set(options.servers.split(",")) - set(SERVERS))
    if unknown:
        parser.error(f"there is no server {unknown[0]!r}; use one of {', '.join(SERVERS)}")
    return options


def one_round(setup: BenchSetup, names: Sequence[str], cache: Path, failed: Failed, seed: int) -> Figures:
    """Measure the raw loop and each server that has not failed; a server that fails is added to `failed`."""
    figures = raw(setup)
    log.info("round %d: raw %.1f/s", seed + 1, figures["raw_per_s"])
    for name in names:
        if name in failed:
            continue
        server = SERVERS[name]
        try:
            own = measure_server(server, python(server, cache), setup, figures["raw_per_s"], seed)
        except (SetupError, RuntimeError, TimeoutError, OSError, CalledProcessError) as error:
            failed[name] = f"{error}" or type(error).__name__
            log.warning("%s failed: %s", name, error)
            continue
        figures |= own
        log.info("%s: %s", name, {key: round(own[key], 3) for key in own if key.endswith(LOGGED)})
    return figures


if __name__ == "__main__":
    main()
