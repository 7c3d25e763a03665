"""Real servers under load: the highest rate in time, an overload, and a step in the rate."""

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

FOVEATE = SERVERS["foveate"]
FIFO = ("--policy", "fifo", "--plan", "full", "--max-batch", str(MAX_BATCH_SIZE))
STATIC_FULL = replace(FOVEATE, name="static-full", command=(*FOVEATE.command, *FIFO))
"""Foveate as a plain server: first in, first out, and every request at the full plan."""
OVERLOAD = 2.0
"""The overload, as a multiple of the raw rate."""
STEP_BASE, STEP = 0.5, 4.0
"""The rate before and after a step, as a multiple of the raw rate, and the factor of the step."""
PRECISION = 0.08
"""The precision of the search for the highest rate."""
SECOND_SEED = 1000
"""Added to the seed of a run for a second run with other arrivals."""


@dataclass(frozen=True, slots=True)
class SloBench:
    """What all servers share: the setup, the deadline and the raw rate."""

    setup: BenchSetup
    deadline_ms: float
    raw_per_s: float

    @contextmanager
    def served(self, server: PeerServer, python: Path, own_rate: float) -> Iterator[str]:
        """Run a warm server, tuned to the deadline and to its rate in a closed loop; yield its URL."""
        with self._running(server, python, self.deadline_ms, own_rate) as url:
            yield url

    def run(
        self, url: str, name: str, rate: float, seed: int, shape: str = "poisson", headers: str = ""
    ) -> LoadTestRun:
        """One open-loop run at this rate. Raises SetupError."""
        run = open_loop(url, rate, self.deadline_ms, self.setup, seed, shape, name, headers)
        log.info("%s, %s at %.1f/s: %.2f%% in time", name, shape, rate, 100 * attainment(run.records))
        return run

    def find_highest_rate(self, url: str, name: str, start: float, seed: int) -> "RateSearch":
        """The highest rate that reaches ATTAINMENT_GOAL.

        A rate that fails is tried once more with other arrivals, because one stall of a shared machine would
        end the search.
        """
        runs: list[LoadTestRun] = []

        def measure(rate: float) -> float:
            best = 0.0
            for offset in (0, SECOND_SEED):
                runs.append(self.run(url, name, rate, seed + offset))
                best = max(best, attainment(runs[-1].records))
                if best >= ATTAINMENT_GOAL:
                    break
            return best

        return RateSearch(highest_rate(measure, start, ATTAINMENT_GOAL, PRECISION), runs)

    def closed_loop_rate(self, server: PeerServer, python: Path) -> float:
        """Answers per second in a closed loop without a deadline, which the server is tuned to."""
        with self._running(server, python, NO_DEADLINE_MS, self.raw_per_s) as url:
            jpeg = self.setup.images.jpegs[0]
            return closed_loop(url, jpeg, TUNED_AT, self.setup.seconds / 2).per_second

    @contextmanager
    def _running(self, server: PeerServer, python: Path, slo_ms: float, rate: float) -> Iterator[str]:
        config = on_free_port(PeerConfig(self.setup.weights, self.setup.precision, 0, slo_ms, rate))
        jpegs = self.setup.images.jpegs
        with running(server, python, config, jpegs[0], self.setup.logs / f"{server.name}.log") as url:
            warm_up(url, jpegs)
            yield url


@dataclass(frozen=True, slots=True)
class RateSearch:
    """The highest rate that reached the goal, and the runs of the search."""

    rate: float
    runs: Sequence[LoadTestRun]

    @property
    def accuracy(self) -> float:
        """Top-1 of the answers in time at that rate; NaN if no rate reached the goal."""
        at_rate = [run for run in self.runs if run.settings["rate"] == self.rate]
        return accuracy(at_rate[-1].records) if at_rate else math.nan


@dataclass(frozen=True, slots=True)
class Recovery:
    """Recovery from a step, in seconds."""

    recovery_s: float
    """From the start of the step to the end of the last window below ATTAINMENT_GOAL."""
    quality_back_s: float
    """From the end of the step to the end of the last window below full quality, or without answers."""


def recovery(run: LoadTestRun) -> Recovery:
    """The recovery of a run whose middle third was a step."""
    third = run.span_s / 3
    all_windows = windows(run.records)
    missed = [w for w in all_windows if w.start >= third and w.attainment < ATTAINMENT_GOAL]
    degraded = [w for w in all_windows if w.start >= 2 * third and not w.quality >= 1]
    return Recovery(_last_end(missed, third), _last_end(degraded, 2 * third))


def _last_end(of: Sequence[Window], since: float) -> float:
    return max((w.start + WINDOW_S - since for w in of), default=0.0)
