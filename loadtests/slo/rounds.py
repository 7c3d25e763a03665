"""One round of the bench: static-full, Foveate and the other servers, and their simulations."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CalledProcessError

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.load.result import LoadTestRun
from loadtests.load.score import accuracy, attainment, quality
from loadtests.peers.config import MAX_BATCH_SIZE
from loadtests.peers.environment import python
from loadtests.peers.measure import BenchSetup, raw
from loadtests.peers.running import SERVERS
from loadtests.peers.setup import Failed
from loadtests.report import Figures
from loadtests.simulate.__main__ import read_rungs
from loadtests.simulate.run import World
from loadtests.slo import decisions, late, simulated
from loadtests.slo.live import (
    FOVEATE,
    OVERLOAD,
    SECOND_SEED,
    STATIC_FULL,
    STEP,
    STEP_BASE,
    RateSearch,
    SloBench,
    recovery,
)

log = logging.getLogger(__name__)
START_SHARE = 0.7
"""The start of the search for the highest rate of a full-plan server, as a share of its rate."""
BEYOND = 3.0
"""The rate beyond the overload, as a multiple of the raw rate. With MIN_QUALITY, the server has to refuse
requests at this rate, while decoding alone still keeps up."""
MIN_QUALITY = 1.0
SIMULATED_S = 20.0
ORACLE_SLO_S = 0.2


@dataclass(frozen=True, slots=True)
class ServerRuns:
    """The runs of one of the two Foveate servers in a round."""

    search: RateSearch
    overload: LoadTestRun
    further: list[LoadTestRun]


def one_round(
    setup: BenchSetup, rungs: Sequence[Rung], names: Sequence[str], failed: Failed, cache: Path, seed: int
) -> tuple[Figures, list[LoadTestRun]]:
    """The figures and the runs of all servers. A server that fails is added to `failed`."""
    figures = raw(setup)
    bench = SloBench(setup, setup.deadlines_ms[0], figures["raw_per_s"])
    log.info("round %d: raw %.1f/s, top-1 %.1f%%", seed, bench.raw_per_s, 100 * figures["raw_8_accuracy"])
    static, foveate = run_static_full(bench, seed), run_foveate(bench, seed)
    figures |= live_figures(bench, static, foveate, figures["raw_8_accuracy"])
    figures |= simulation_figures(bench, rungs, static, foveate)
    searches = {STATIC_FULL.name: static.search, FOVEATE.name: foveate.search}
    for name in names:
        if name not in failed:
            try:
                searches[name] = search_peer(bench, name, python(SERVERS[name], cache), seed)
            except (SetupError, RuntimeError, TimeoutError, OSError, CalledProcessError) as error:
                failed[name] = f"{error}" or type(error).__name__
                log.warning("%s failed: %s", name, error)
    for name, search in searches.items():
        figures |= {f"rate_{name}": search.rate, f"accuracy_at_rate_{name}": search.accuracy}
    search_runs = [
        replace(run, name=f"{run.name} at {run.settings['rate']:.0f}/s, seed {run.settings['seed']}")
        for search in searches.values()
        for run in search.runs
    ]
    return figures, [static.overload, foveate.overload, foveate.further[0], *search_runs]


def run_static_full(bench: SloBench, seed: int) -> ServerRuns:
    """The server that always runs the full plan."""
    name, overload_rate = f"{STATIC_FULL.name}, overload", OVERLOAD * bench.raw_per_s
    with bench.served(STATIC_FULL, python(STATIC_FULL, bench.setup.logs), bench.raw_per_s) as url:
        search = bench.find_highest_rate(url, STATIC_FULL.name, START_SHARE * bench.raw_per_s, seed)
        overload = bench.run(url, name, overload_rate, seed)
        second = bench.run(url, name, overload_rate, seed + SECOND_SEED)
        return ServerRuns(search, overload, [second])


def run_foveate(bench: SloBench, seed: int) -> ServerRuns:
    """The server that chooses plans; `further` is the step, a second overload and two runs beyond it."""
    name, overload_rate = f"{FOVEATE.name}, overload", OVERLOAD * bench.raw_per_s
    with bench.served(FOVEATE, python(FOVEATE, bench.setup.logs), bench.raw_per_s) as url:
        overload = bench.run(url, name, overload_rate, seed)
        step = bench.run(url, f"{FOVEATE.name}, step", STEP_BASE * bench.raw_per_s, seed, f"step:{STEP:g}")
        search = bench.find_highest_rate(url, FOVEATE.name, 3 * START_SHARE * bench.raw_per_s, seed)
        second = bench.run(url, name, overload_rate, seed + SECOND_SEED)
        beyond = [
            bench.run(
                url, f"{FOVEATE.name}, beyond", BEYOND * bench.raw_per_s, seed + offset,
                headers=f"x-min-quality: {MIN_QUALITY:g}",
            )
            for offset in (0, SECOND_SEED)
        ]  # fmt: skip
        return ServerRuns(search, overload, [step, second, *beyond])


def search_peer(bench: SloBench, name: str, interpreter: Path, seed: int) -> RateSearch:
    """The highest rate of another server."""
    server = SERVERS[name]
    own_rate = bench.closed_loop_rate(server, interpreter)
    with bench.served(server, interpreter, own_rate) as url:
        return bench.find_highest_rate(url, name, START_SHARE * own_rate, seed)


def live_figures(bench: SloBench, static: ServerRuns, foveate: ServerRuns, full_accuracy: float) -> Figures:
    """The figures of the overload, the step and the highest rates."""
    step, records = foveate.further[0], foveate.overload.records
    recovered, overload = recovery(step), foveate.overload.figures()
    rate, static_rate = foveate.search.rate, static.search.rate
    return {
        "overload_per_s": overload["offered_per_s"] or math.nan,
        "overload_static_attainment": attainment(static.overload.records),
        "overload_attainment": attainment(records),
        "overload_accuracy": accuracy(records),
        "overload_accuracy_loss_points": 100 * (full_accuracy - accuracy(records)),
        "overload_quality": quality(records),
        "generator_us_per_request": overload["generator_cpu_us_per_request"] or math.nan,
        "generator_core_share": overload["generator_core_share"] or math.nan,
        "generator_lag_ms_p99": overload["lag_ms_p99"] or math.nan,
        "rate_ratio_static": rate / static_rate if static_rate else math.inf,
        "rate_ratio_raw": rate / bench.raw_per_s,
        "recovery_s": recovered.recovery_s,
        "quality_back_s": recovered.quality_back_s,
        "step_attainment": attainment(step.records),
    }


def simulation_figures(
    bench: SloBench, rungs: Sequence[Rung], static: ServerRuns, foveate: ServerRuns
) -> Figures:
    """Simulated and real attainment; costs come from one run, arrivals from another."""
    world = World(tuple(rungs), simulated.MAX_BATCH, simulated.QUEUE_ITEMS)
    fifo_world = replace(world, max_batch=MAX_BATCH_SIZE)
    _, second, beyond, beyond_again = foveate.further
    figures: Figures = {}
    for name, policy, earlier, run, min_quality in (
        ("static", Fifo, static.overload, static.further[0], 0.0),
        ("overload", SloPolicy, foveate.overload, second, 0.0),
        ("beyond", SloPolicy, beyond, beyond_again, MIN_QUALITY),
    ):
        own_world = fifo_world if policy is Fifo else world
        costs = simulated.costs(earlier, own_world)
        real = attainment(run.records)
        simulation = simulated.attained(
            run, own_world, policy, earlier, costs, bench.deadline_ms / 1e3, min_quality
        )
        figures |= {
            f"sim_real_{name}_real": real,
            f"sim_real_{name}_simulated": simulation,
            f"sim_real_{name}_slower": costs.disturbance.slowdown,
            f"sim_real_{name}_gap_points": 100 * abs(real - simulation),
        }
    gap = max(value for name, value in figures.items() if name.endswith("gap_points"))
    spread = 100 * abs(attainment(beyond.records) - attainment(beyond_again.records))
    return figures | {"sim_real_gap_points": gap, "sim_real_spread_points": spread}


def offline_figures(seed: int) -> Figures:
    """The figures that need no server process: decisions, wasted forwards, simulator and oracle."""
    rungs = read_rungs("vit-t")
    figures: Figures = decisions.cost_ms(rungs, seed) | late.count(seed)
    ratios = simulated.oracle_ratios(rungs, SloPolicy, ORACLE_SLO_S, SIMULATED_S, seed)
    figures |= {f"oracle_ratio_{shape}": ratio for shape, ratio in ratios.items()}
    figures["oracle_ratio_min"] = min(ratios.values())
    log.info("%s", figures)
    return figures
