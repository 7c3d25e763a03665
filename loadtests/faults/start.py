"""Start-up: seconds until ready with an empty and with a used cache folder, and a step in load after it."""

import tempfile
from pathlib import Path

from loadtests.faults.process import running
from loadtests.load.launch import launch
from loadtests.load.score import attainment
from loadtests.report import UNCACHED, Figures

RATE, STEP, SECONDS, DEADLINE_MS = 15.0, 4.0, 9.0, 500.0
"""Requests per second before the step, the factor of the step, the length of the run, and the deadline. The
middle third of the run is the step."""


def measure(rate: float = RATE) -> Figures:
    """Start a default server twice with one cache folder. The step comes right after the second start."""
    with tempfile.TemporaryDirectory() as folder:
        environment = UNCACHED | {"XDG_CACHE_HOME": str(Path(folder) / "cache")}
        with running(environment=environment) as server:
            figures = {"ready_s_first": server.ready_s, "ready_cpu_s_first": server.ready_cpu_s}
            server.wait_warm()  # a server that is stopped sooner has measured less
        with running(environment=environment) as server:
            figures |= {"ready_s_second": server.ready_s, "ready_cpu_s_second": server.ready_cpu_s}
            return figures | {"cold_step_attainment": cold_step(server.url, rate)}


def cold_step(url: str, rate: float) -> float:
    """The share of requests in time in a run whose middle third has STEP times the rate."""
    options = {"url": url, "shape": f"step:{STEP:g}", "rate": rate, "seconds": SECONDS,
               "slo-ms": DEADLINE_MS, "pictures": "640x480", "path": "/classify?model=vit-t"}  # fmt: skip
    (run,) = launch(*(f"--{name}={value}" for name, value in options.items()))
    return attainment(run.records)
