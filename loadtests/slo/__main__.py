"""Promises under overload, over a step, against other servers and in the simulator: writes
docs/benchmarks/slo.{json,md}, and the runs of the last round as runs/slo.html."""

import argparse
import logging
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CalledProcessError

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.load.page import page as report
from loadtests.load.result import Run
from loadtests.load.score import accuracy, attainment, quality
from loadtests.overhead import fast_precision
from loadtests.peers.__main__ import CACHE, install, medians, prepare
from loadtests.peers.environment import python
from loadtests.peers.job import MOST_IN_BATCH
from loadtests.peers.measure import Figures, Setup, raw
from loadtests.peers.running import SERVERS
from loadtests.report import RUNS, write
from loadtests.simulate.__main__ import read_rungs
from loadtests.simulate.run import World
from loadtests.slo import decisions, late, simulated
from loadtests.slo.live import CALM, OURS, OVERLOAD, STATIC, STEP, Bench, Search, recovery
from loadtests.slo.page import page

log = logging.getLogger("loadtests.slo")
PEERS = "fastapi,litserve,mosec"
"""Those that keep a promise longest, in `python -m loadtests.peers`, which has more of them."""
SHARE = 0.7
"""Of the raw rate, where the search for the highest rate of a server that runs full begins."""
BEYOND = 3.0
"""Times the raw rate, where the simulator is compared: requests that ask for FLOOR have to be refused there,
and decoding alone still fits."""
FLOOR = 1.0
SIMULATED_S = 20.0


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and with it whatever server runs
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    options.cache.mkdir(parents=True, exist_ok=True)
    setup = prepare(options)
    rungs = read_rungs(str(Path(setup.weights).with_suffix(".profile.json")))
    names, failed = install([name for name in options.peers.split(",") if name], options.cache)
    rounds, runs = [], list[Run]()
    for seed in range(options.seed, options.seed + options.rounds):
        found, runs = one_round(setup, rungs, names, failed, options.cache, seed)
        rounds.append(found | alone(seed))
        log.info("round %d: %s", seed, {name: round(value, 3) for name, value in rounds[-1].items()})
    measured = [name for name in names if name not in failed]
    for found in rounds:
        if best := max((found[f"rate_{name}"] for name in measured), default=0.0):
            found["rate_ratio_best_peer"] = found["rate_foveate"] / best
    figures = medians(rounds)
    body = page(figures, measured, failed, setup, options.rounds)
    if options.draft:
        print(body)
        return
    RUNS.mkdir(exist_ok=True)
    (RUNS / "slo.html").write_text(report(runs, runs[:DETAILED]))
    print(write("slo", figures, body).read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.slo", description=__doc__)
    parser.add_argument("--peers", default=PEERS, help="which (default: %(default)s); empty: none")
    parser.add_argument("--cache", type=Path, default=CACHE, help="weights, environments, logs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each single run")
    parser.add_argument("--promises", default="500", help="the promise in milliseconds (%(default)s)")
    parser.add_argument("--pictures", choices=("scene", "640x480"), default="640x480")
    parser.add_argument("--precision", default=fast_precision())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draft", action="store_true", help="print the page, write nothing")
    parser.set_defaults(loads="1")
    return parser.parse_args()


def alone(seed: int) -> Figures:
    """What needs no other process: decisions, forwards for nobody, and the simulator with its oracle."""
    rungs = read_rungs("vit-t")
    figures: Figures = decisions.cost_ms(rungs, seed) | late.count(seed)
    ratios = simulated.oracle_ratios(rungs, SloPolicy, 0.2, SIMULATED_S, seed)
    figures |= {f"oracle_ratio_{shape}": ratio for shape, ratio in ratios.items()}
    figures["oracle_ratio_min"] = min(ratios.values())
    log.info("%s", figures)
    return figures


def one_round(
    setup: Setup, rungs: Sequence[Rung], names: Sequence[str], failed: dict[str, str], cache: Path, seed: int
) -> tuple[Figures, list[Run]]:
    """All servers once, and their runs. A peer that fails is added to `failed`."""
    figures = raw(setup)
    bench = Bench(setup, setup.promises_ms[0], figures["raw_per_s"])
    log.info("round %d: raw %.1f/s, %.1f%% right", seed, bench.raw_per_s, 100 * figures["raw_8_accuracy"])
    static, ours = static_full(bench, seed), promise(bench, seed)
    figures |= compared(bench, static, ours, figures["raw_8_accuracy"])
    figures |= gaps(bench, rungs, static, ours)
    searches = {STATIC.name: static.search, OURS.name: ours.search}
    for name in names:
        if name not in failed:
            try:
                searches[name] = peer(bench, name, python(SERVERS[name], cache), seed)
            except (SetupError, RuntimeError, TimeoutError, OSError, CalledProcessError) as error:
                failed[name] = f"{error}" or type(error).__name__
                log.warning("%s failed: %s", name, error)
    for name, search in searches.items():
        figures |= {f"rate_{name}": search.rate, f"accuracy_at_rate_{name}": search.accuracy}
    searched = [
        replace(run, name=f"{run.name} at {run.settings['rate']:.0f}/s, seed {run.settings['seed']}")
        for search in searches.values()
        for run in search.runs
    ]
    return figures, [static.overload, ours.overload, ours.more[0], *searched]


DETAILED = 3
"""The first so many of a round's runs are shown over time."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a server of ours did in a round."""

    search: Search
    overload: Run
    more: list[Run]


def static_full(bench: Bench, seed: int) -> Shown:
    """The server that always spends full compute."""
    with bench.served(STATIC, python(STATIC, bench.setup.logs), bench.raw_per_s) as url:
        search = bench.most(url, STATIC.name, SHARE * bench.raw_per_s, seed)
        overload = bench.offer(url, f"{STATIC.name}, overload", OVERLOAD * bench.raw_per_s, seed)
        again = bench.offer(url, f"{STATIC.name}, overload", OVERLOAD * bench.raw_per_s, seed + 1000)
        return Shown(search, overload, [again])


def promise(bench: Bench, seed: int) -> Shown:
    """The server that chooses."""
    with bench.served(OURS, python(OURS, bench.setup.logs), bench.raw_per_s) as url:
        overload = bench.offer(url, f"{OURS.name}, overload", OVERLOAD * bench.raw_per_s, seed)
        step = bench.offer(url, f"{OURS.name}, step", CALM * bench.raw_per_s, seed, f"step:{STEP:g}")
        search = bench.most(url, OURS.name, 3 * SHARE * bench.raw_per_s, seed)
        again = bench.offer(url, f"{OURS.name}, overload", OVERLOAD * bench.raw_per_s, seed + 1000)
        beyond = [
            bench.offer(
                url, f"{OURS.name}, beyond", BEYOND * bench.raw_per_s, seed + i,
                headers=f"x-min-quality: {FLOOR:g}",
            )
            for i in (0, 1000)
        ]  # fmt: skip
        return Shown(search, overload, [step, again, *beyond])


def compared(bench: Bench, static: Shown, ours: Shown, full_accuracy: float) -> Figures:
    """The overload and the step, in figures."""
    step, records = recovery(ours.more[0]), ours.overload.records
    told = ours.overload.figures()
    kept, plain = ours.search.rate, static.search.rate
    return {
        "overload_per_s": told["offered_per_s"] or math.nan,
        "overload_static_attainment": attainment(static.overload.records),
        "overload_attainment": attainment(records),
        "overload_accuracy": accuracy(records),
        "overload_accuracy_loss_points": 100 * (full_accuracy - accuracy(records)),
        "overload_quality": quality(records),
        "generator_us_per_request": told["generator_cpu_us_per_request"] or math.nan,
        "generator_core_share": told["generator_core_share"] or math.nan,
        "generator_lag_ms_p99": told["lag_ms_p99"] or math.nan,
        "rate_ratio_static": kept / plain if plain else math.inf,
        "rate_ratio_raw": kept / bench.raw_per_s,
        "recovery_s": step.recovery_s,
        "quality_back_s": step.quality_back_s,
        "step_attainment": attainment(ours.more[0].records),
    }


def gaps(bench: Bench, rungs: Sequence[Rung], static: Shown, ours: Shown) -> Figures:
    """Simulated against real attainment, in points: costs are taken from one run, arrivals from another."""
    chosen = World(tuple(rungs), simulated.MAX_BATCH, simulated.QUEUE_ITEMS)
    fifo = replace(chosen, max_batch=MOST_IN_BATCH)
    _, again, beyond, other = ours.more
    figures: Figures = {}
    for name, policy, learnt, tried, min_rung in (
        ("static", Fifo, static.overload, static.more[0], 0.0),
        ("overload", SloPolicy, ours.overload, again, 0.0),
        ("beyond", SloPolicy, beyond, other, FLOOR),
    ):
        world = fifo if policy is Fifo else chosen
        costs = simulated.costs(learnt, world)
        real = attainment(tried.records)
        found = simulated.attained(tried, world, policy, learnt, costs, bench.promise_ms / 1e3, min_rung)
        figures |= {
            f"sim_real_{name}_real": real,
            f"sim_real_{name}_simulated": found,
            f"sim_real_{name}_slower": costs.disturbance.slowdown,
            f"sim_real_{name}_gap_points": 100 * abs(real - found),
        }
    gap = max(value for name, value in figures.items() if name.endswith("gap_points"))
    spread = 100 * abs(attainment(beyond.records) - attainment(other.records))
    return figures | {"sim_real_gap_points": gap, "sim_real_spread_points": spread}


def peer(bench: Bench, name: str, interpreter: Path, seed: int) -> Search:
    """The highest rate at which another server keeps the promise."""
    server = SERVERS[name]
    managed = bench.managed(server, interpreter)
    with bench.served(server, interpreter, managed) as url:
        return bench.most(url, name, SHARE * managed, seed)


if __name__ == "__main__":
    main()
