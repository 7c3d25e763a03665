"""Draws the panels of the Grafana dashboard over a run, with the values that Prometheus gives for them.

`python -m loadtests.scale.dashboard` writes docs/benchmarks/dashboard.png. Grafana's panels look different.
"""

import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout
from loadtests.report import FOLDER, ROOT
from loadtests.scale.caches import cache_environment
from loadtests.tasks.clicking import enlarged
from loadtests.tasks.server import post, serving

DASHBOARD = ROOT / "monitoring/grafana/foveate.json"
LOW_LOAD, HIGH_LOAD = ("--rate", "15", "--seconds", "45"), ("--rate", "180", "--seconds", "45")
"""Images per second for vit-t within 300 ms. Other tasks and repeated images are sent all the time."""
STEP_S = 1.0
"""Seconds between two values of a line."""


@dataclass(frozen=True, slots=True)
class PanelLine:
    """One line of a panel."""

    legend: str
    times_s: Sequence[float]
    """Seconds since the start of the run."""
    values: Sequence[float]


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """The URL of a Prometheus that scrapes a server (host:port) every second."""
    program = shutil.which("prometheus")
    if program is None:
        raise SetupError("prometheus is not installed: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        probe.close()
        config = Path(folder, "prometheus.yml")
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{ROOT}/monitoring/rules.yml']\n"
            f"scrape_configs: [{{job_name: foveate, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        command = [
            program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]  # fmt: skip
        process = subprocess.Popen(command)  # noqa: S603
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def query_range(prometheus_url: str, query: str, start: float, end: float) -> list[Mapping[str, Any]]:
    """The series of a query between two Unix times."""
    parameters = {"query": query, "start": start, "end": end, "step": STEP_S}
    url = f"{prometheus_url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310
        series: list[Mapping[str, Any]] = json.load(response)["data"]["result"]
    return series


def lines_of(panel: Mapping[str, Any], prometheus_url: str, start: float, end: float) -> list[PanelLine]:
    """All lines of a panel, for all models."""
    lines = list[PanelLine]()
    for target in panel["targets"]:
        query = target["expr"].replace("$model", ".*")
        for series in query_range(prometheus_url, query, start, end):
            legend = target.get("legendFormat") or ""
            for label, value in series["metric"].items():
                legend = legend.replace(f"{{{{{label}}}}}", value)
            times_s = [float(at) - start for at, _ in series["values"]]
            lines.append(PanelLine(legend, times_s, [float(value) for _, value in series["values"]]))
    return lines


def draw(panels: Sequence[tuple[Mapping[str, Any], Sequence[PanelLine]]], path: Path) -> None:
    """Draw the panels at their places in the dashboard's grid."""
    from matplotlib.figure import Figure

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    figure = Figure(figsize=(16, 0.36 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 24)
    for panel, lines in panels:
        cell = panel["gridPos"]
        axis = figure.add_subplot(grid[cell["y"] : cell["y"] + cell["h"], cell["x"] : cell["x"] + cell["w"]])
        axis.set_title(panel["title"], fontsize=9, loc="left")
        if panel["type"] == "stat":
            text = stat_text(panel, lines)
            axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=20, transform=axis.transAxes)
            axis.axis("off")
            continue
        for line in lines:
            axis.plot(line.times_s, line.values, label=line.legend, linewidth=1)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        if lines:
            axis.legend(fontsize=6, loc="upper left", ncols=1 + (len(lines) > 5))
    figure.savefig(path, dpi=90)


def stat_text(panel: Mapping[str, Any], lines: Sequence[PanelLine]) -> str:
    """The text of a panel with one number: the last value, as a percentage if the panel says so."""
    last = lines[-1].values[-1] if lines else float("nan")
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    return f"{last:.1%}" if unit == "percentunit" else f"{last:.2f}"


def send_load(url: str) -> None:
    """A low, a high and a low load, with masks, point prompts and repeated images besides."""
    stopping, jpegs = threading.Event(), [enlarged(jpeg, (480, 480)) for jpeg in heldout().jpegs[:40]]

    def send_other_tasks() -> None:
        for number in itertools.count():
            if stopping.wait(0.1):
                return
            path = ("/segment", "/segment?points=240%2C240", "/classify?model=vit-t")[number % 3]
            try:
                post(f"{url}{path}", jpegs[number // 3 % len(jpegs)], "image/jpeg", x_slo_ms="1000")
            except urllib.error.HTTPError as error:  # the dashboard shows refusals
                error.close()

    sender = threading.Thread(target=send_other_tasks)
    sender.start()
    load = [sys.executable, "-m", "loadtests.load", "--url", url, "--slo-ms", "300", "--pictures", "640x480",
            "--path", "/classify?model=vit-t"]  # fmt: skip
    try:
        for phase in (LOW_LOAD, HIGH_LOAD, LOW_LOAD):
            subprocess.run([*load, *phase], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    finally:
        stopping.set()
        sender.join()


def main() -> None:
    """Run a server under load, and draw the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    with (
        serving(environment=cache_environment("memory")) as url,
        prometheus(url.removeprefix("http://")) as prometheus_url,
    ):
        time.sleep(3)
        start = time.time()
        send_load(url)
        end = time.time()
        panels = [
            (panel, lines_of(panel, prometheus_url, start, end))
            for panel in dashboard["panels"]
            if "targets" in panel
        ]
    draw(panels, FOLDER / "dashboard.png")


if __name__ == "__main__":
    main()
