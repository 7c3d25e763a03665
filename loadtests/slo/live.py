"""Real servers under load: the highest rate that each keeps its promise at, an overload, and a step."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.load.capacity import highest_rate
from loadtests.load.result import GOAL, Run
from loadtests.load.score import WINDOW_S, Window, attainment, windows
from loadtests.peers.job import Job
from loadtests.peers.measure import TUNED_AT, UNHURRIED_MS, Setup, anew, closed_loop, open_loop, warmed
from loadtests.peers.running import SERVERS, Server, running

log = logging.getLogger(__name__)

OURS = SERVERS["foveate"]
STATIC = replace(OURS, name="static-full", command=(*OURS.command, "--policy", "fifo", "--plan", "full"))
"""The same server without the choice: first come, first served, everybody at full."""
OVERLOAD = 2.0
"""Times the raw rate, what the raw loop manages."""
CALM, STEP = 0.5, 4.0
"""The rate before and after a step, as multiples of the raw rate, and by how much more come in its third."""
PRECISION = 0.08
"""How closely the highest rate is searched for."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for every server: the setup, the promise and the raw rate."""

    setup: Setup
    promise_ms: float
    raw_per_s: float

    @contextmanager
    def served(self, server: Server, python: Path, managed: float) -> Iterator[str]:
        """A server, tuned to the promise and the rate it managed in a closed loop, warm."""
        job = anew(Job(self.setup.weights, self.setup.precision, 0, self.promise_ms, managed))
        jpegs = self.setup.pictures.jpegs
        with running(server, python, job, jpegs[0], self.setup.logs / f"{server.name}.log") as url:
            warmed(url, jpegs)
            yield url

    def offer(
        self, url: str, name: str, rate: float, seed: int, shape: str = "poisson", headers: str = ""
    ) -> Run:
        run = open_loop(url, rate, self.promise_ms, self.setup, seed, shape, name, headers)
        log.info("%s, %s at %.1f/s: %.2f%% in time", name, shape, rate, 100 * attainment(run.records))
        return run

    def most(self, url: str, name: str, start: float, seed: int) -> tuple[float, list[Run]]:
        """The highest rate at which nearly everybody is answered in time, and the runs that showed it."""
        runs = []

        def measure(rate: float) -> float:
            runs.append(self.offer(url, name, rate, seed))
            return attainment(runs[-1].records)

        return highest_rate(measure, start, GOAL, PRECISION), runs

    def managed(self, server: Server, python: Path) -> float:
        """Answers a second in a closed loop, unhurried: what a server is tuned with."""
        job = anew(Job(self.setup.weights, self.setup.precision, 0, UNHURRIED_MS, self.raw_per_s))
        jpegs = self.setup.pictures.jpegs
        with running(server, python, job, jpegs[0], self.setup.logs / f"{server.name}.log") as url:
            warmed(url, jpegs)
            return closed_loop(url, jpegs[0], TUNED_AT, self.setup.seconds / 2).per_second


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a step went, in seconds."""

    recovery_s: float
    """From the start of the step to the end of the last quarter of a second below the goal in it."""
    quality_back_s: float
    """From the end of the step to the end of the last quarter of a second that was answered below full."""


def recovery(run: Run) -> Recovery:
    """Of a run whose middle third was a step."""
    third = run.span_s / 3
    cut = windows(run.records)
    inside = [w for w in cut if third <= w.start < 2 * third]
    after = [w for w in cut if w.start >= 2 * third]
    broken = [w for w in inside if w.attainment < GOAL]
    degraded = [w for w in after if not math.isnan(w.quality) and w.quality < 1]
    return Recovery(_last(broken, third), _last(degraded, 2 * third))


def _last(found: Sequence[Window], since: float) -> float:
    return max((w.start + WINDOW_S - since for w in found), default=0.0)
