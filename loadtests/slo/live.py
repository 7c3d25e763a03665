"""Real servers under load: the highest rate that each keeps its promise at, an overload, and a step."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.load.capacity import highest_rate
from loadtests.load.result import ATTAINMENT_GOAL, LoadTestRun
from loadtests.load.score import WINDOW_S, Window, accuracy, attainment, windows
from loadtests.peers.config import MAX_BATCH_SIZE, PeerConfig
from loadtests.peers.measure import (
    NO_DEADLINE_MS,
    TUNED_AT,
    BenchSetup,
    closed_loop,
    on_free_port,
    open_loop,
    warm_up,
)
from loadtests.peers.running import SERVERS, PeerServer, running

log = logging.getLogger(__name__)

OURS = SERVERS["foveate"]
FIFO = ("--policy", "fifo", "--plan", "full", "--max-batch", str(MAX_BATCH_SIZE))
STATIC_FULL = replace(OURS, name="static-full", command=(*OURS.command, *FIFO))
"""The same server without the choice: first come, first served, everybody at full."""
OVERLOAD = 2.0
"""Times the raw rate, what the raw loop manages."""
CALM, STEP = 0.5, 4.0
"""The rate before and after a step, as multiples of the raw rate, and by how much more come in its third."""
PRECISION = 0.08
"""How closely the highest rate is searched for."""


@dataclass(frozen=True, slots=True)
class SloBench:
    """What is the same for every server: the setup, the promise and the raw rate."""

    setup: BenchSetup
    deadline_ms: float
    raw_per_s: float

    @contextmanager
    def served(self, server: PeerServer, python: Path, managed: float) -> Iterator[str]:
        """A server, tuned to the promise and the rate it managed in a closed loop, warm."""
        config = on_free_port(
            PeerConfig(self.setup.weights, self.setup.precision, 0, self.deadline_ms, managed)
        )
        jpegs = self.setup.pictures.jpegs
        with running(server, python, config, jpegs[0], self.setup.logs / f"{server.name}.log") as url:
            warm_up(url, jpegs)
            yield url

    def offer(
        self, url: str, name: str, rate: float, seed: int, shape: str = "poisson", headers: str = ""
    ) -> LoadTestRun:
        run = open_loop(url, rate, self.deadline_ms, self.setup, seed, shape, name, headers)
        log.info("%s, %s at %.1f/s: %.2f%% in time", name, shape, rate, 100 * attainment(run.records))
        return run

    def highest_rate(self, url: str, name: str, start: float, seed: int) -> "Search":
        """The highest rate at which nearly everybody is answered in time. A rate that fails is tried once
        more with other arrivals: on a machine that is shared, one stall would end the search."""
        runs: list[LoadTestRun] = []

        def measure(rate: float) -> float:
            best = 0.0
            for again in (0, 1000):
                runs.append(self.offer(url, name, rate, seed + again))
                best = max(best, attainment(runs[-1].records))
                if best >= ATTAINMENT_GOAL:
                    break
            return best

        return RateSearch(highest_rate(measure, start, ATTAINMENT_GOAL, PRECISION), runs)

    def managed(self, server: PeerServer, python: Path) -> float:
        """Answers a second in a closed loop, unhurried: what a server is tuned with."""
        config = on_free_port(
            PeerConfig(self.setup.weights, self.setup.precision, 0, NO_DEADLINE_MS, self.raw_per_s)
        )
        jpegs = self.setup.pictures.jpegs
        with running(server, python, config, jpegs[0], self.setup.logs / f"{server.name}.log") as url:
            warm_up(url, jpegs)
            return closed_loop(url, jpegs[0], TUNED_AT, self.setup.seconds / 2).per_second


@dataclass(frozen=True, slots=True)
class RateSearch:
    """The highest rate that was kept, and the runs that showed it."""

    rate: float
    runs: Sequence[LoadTestRun]

    @property
    def accuracy(self) -> float:
        """Top-1 of what was answered in time at that rate; NaN where no rate was kept."""
        kept = [run for run in self.runs if run.settings["rate"] == self.rate]
        return accuracy(kept[-1].records) if kept else math.nan


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a step went, in seconds."""

    recovery_s: float
    """From the start of the step to the end of the last quarter of a second below the goal."""
    quality_back_s: float
    """From the end of the step to the end of the last quarter of a second that was not answered at full's
    quality, or not at all."""


def recovery(run: LoadTestRun) -> Recovery:
    """Of a run whose middle third was a step."""
    third = run.span_s / 3
    cut = windows(run.records)
    broken = [w for w in cut if w.start >= third and w.attainment < ATTAINMENT_GOAL]
    degraded = [w for w in cut if w.start >= 2 * third and not w.quality >= 1]
    return Recovery(_last(broken, third), _last(degraded, 2 * third))


def _last(found: Sequence[Window], since: float) -> float:
    return max((w.start + WINDOW_S - since for w in found), default=0.0)
