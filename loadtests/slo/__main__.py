"""Measure deadlines under overload, over a step, against other servers and in the simulator.

Writes docs/benchmarks/slo.{json,md}, and the runs of the last round to runs/slo.html.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.load.page import page as html_report
from loadtests.load.result import LoadTestRun
from loadtests.overhead import medians
from loadtests.peers.setup import add_bench_options, install, prepare, settings_of
from loadtests.report import RUNS, Figures, left_out, read, render, write
from loadtests.simulate.__main__ import read_rungs
from loadtests.slo.page import page
from loadtests.slo.rounds import offline_figures, one_round

log = logging.getLogger("loadtests.slo")
PEERS = "fastapi,litserve,mosec"
"""The servers with the highest rates in `python -m loadtests.peers`, which measures more servers."""
PLOTTED = 3
"""The number of runs of a round that the report plots over time."""


def main() -> None:
    options = arguments()
    if options.render:
        print(render("slo", page(read("slo"))).read_text())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the running server is stopped too
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    setup = prepare(options)
    rungs = read_rungs(str(Path(setup.weights).with_suffix(".profile.json")))
    names, failed = install([name for name in options.peers.split(",") if name], options.cache)
    rounds, runs = [], list[LoadTestRun]()
    for seed in range(options.seed, options.seed + options.rounds):
        live, runs = one_round(setup, rungs, names, failed, options.cache, seed)
        rounds.append(live | offline_figures(seed))
        log.info("round %d: %s", seed, {name: round(value, 3) for name, value in rounds[-1].items()})
    add_best_peer(rounds, [name for name in names if name not in failed])
    figures = medians(rounds)
    if options.draft:
        print(page(figures))
        return
    RUNS.mkdir(exist_ok=True)
    (RUNS / "slo.html").write_text(html_report(runs, runs[:PLOTTED]))
    settings = settings_of(setup, options.rounds) | left_out(failed)
    print(write("slo", figures, page(figures), settings).read_text())


def add_best_peer(rounds: Sequence[Figures], peers: Sequence[str]) -> None:
    """Add to each round the rate of Foveate relative to the best of these servers."""
    for figures in rounds:
        if best := max((figures[f"rate_{name}"] for name in peers), default=0.0):
            figures["rate_ratio_best_peer"] = figures["rate_foveate"] / best


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.slo", description=__doc__)
    parser.add_argument("--peers", default=PEERS, help="other servers (%(default)s); empty for none")
    parser.add_argument("--seed", type=int, default=0, help="of the first round (%(default)s)")
    add_bench_options(parser, seconds=12.0, deadlines="500")
    parser.set_defaults(loads="1")
    return parser.parse_args()


if __name__ == "__main__":
    main()
