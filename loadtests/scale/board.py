"""The dashboard's panels over a run: what Prometheus answers to their queries, drawn by matplotlib.

`python -m loadtests.scale.board` writes docs/benchmarks/dashboard.png; it is not Grafana's picture.
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
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout
from loadtests.report import FOLDER, ROOT
from loadtests.scale.caches import cached
from loadtests.tasks.clicking import enlarged
from loadtests.tasks.server import post, serving

BOARD = ROOT / "monitoring/grafana/foveate.json"
CALM, RUSH = ("--rate", "15", "--seconds", "45"), ("--rate", "180", "--seconds", "45")
"""Pictures a second for vit-t within 300 ms. Masks, clicks and repeats come all the time."""
STEP_S = 1.0
Series = tuple[str, Sequence[float], Sequence[float]]
"""A legend, times and values."""


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """The URL of a Prometheus that scrapes a server every second."""
    program = shutil.which("prometheus")
    if program is None:
        raise SetupError("prometheus is not installed: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own: int = free.getsockname()[1]
        free.close()
        config = Path(folder, "prometheus.yml")
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{ROOT}/monitoring/rules.yml']\n"
            f"scrape_configs: [{{job_name: foveate, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        command = [
            program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{own}", "--log.level=error",
        ]  # fmt: skip
        process = subprocess.Popen(command)  # noqa: S603
        try:
            yield f"http://127.0.0.1:{own}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def asked(prometheus: str, expression: str, since: float, until: float) -> list[Mapping[str, Any]]:
    """What a query gave over a span, series by series."""
    query = {"query": expression, "start": since, "end": until, "step": STEP_S}
    url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
        found: list[Mapping[str, Any]] = json.load(answer)["data"]["result"]
    return found


def series_of(panel: Mapping[str, Any], prometheus: str, since: float, until: float) -> list[Series]:
    """All lines of a panel."""
    found = list[Series]()
    for target in panel["targets"]:
        for one in asked(prometheus, target["expr"].replace("$model", ".*"), since, until):
            legend = target.get("legendFormat") or ""
            for name, value in one["metric"].items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            at = [float(time_s) - since for time_s, _ in one["values"]]
            found.append((legend, at, [float(value) for _, value in one["values"]]))
    return found


def draw(panels: Sequence[tuple[Mapping[str, Any], list[Series]]], path: Path) -> None:
    """Where the dashboard has them."""
    from matplotlib.figure import Figure

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    figure = Figure(figsize=(16, 0.36 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 24)
    for panel, lines in panels:
        place = panel["gridPos"]
        axis = figure.add_subplot(
            grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]]
        )
        axis.set_title(panel["title"], fontsize=9, loc="left")
        if panel["type"] == "stat":
            last = lines[-1][2][-1] if lines else float("nan")
            unit = panel["fieldConfig"]["defaults"].get("unit", "")
            text = f"{last:.1%}" if unit == "percentunit" else f"{last:.2f}"
            axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=20, transform=axis.transAxes)
            axis.axis("off")
            continue
        for legend, at, values in lines:
            axis.plot(at, values, label=legend, linewidth=1)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        if lines:
            axis.legend(fontsize=6, loc="upper left", ncols=1 + (len(lines) > 5))
    figure.savefig(path, dpi=90)


def send(url: str) -> None:
    """A calm, a rush, and a calm; beside them masks, clicks, and questions that have been asked before."""
    over, jpegs = threading.Event(), [enlarged(jpeg, (480, 480)) for jpeg in heldout().jpegs[:40]]

    def others() -> None:
        for number in itertools.count():
            if over.wait(0.1):
                return
            kind = ("/segment", "/segment?points=240%2C240", "/classify")[number % 3]
            try:
                post(f"{url}{kind}", jpegs[number // 3 % len(jpegs)], "image/jpeg", x_slo_ms="1000")
            except urllib.error.HTTPError as error:  # refused: that is for the dashboard to show
                error.close()

    beside = threading.Thread(target=others)
    beside.start()
    load = [sys.executable, "-m", "loadtests.load", "--url", url, "--slo-ms", "300", "--pictures", "640x480"]
    try:
        for phase in (CALM, RUSH, CALM):
            subprocess.run([*load, *phase], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    finally:
        over.set()
        beside.join()


def main() -> None:
    board = json.loads(BOARD.read_text())
    with serving(environment=cached("memory")) as url, prometheus(url.removeprefix("http://")) as found:
        time.sleep(3)
        since = time.time()
        send(url)
        until = time.time()
        panels = [
            (panel, series_of(panel, found, since, until)) for panel in board["panels"] if "targets" in panel
        ]
    draw(panels, FOLDER / "dashboard.png")


if __name__ == "__main__":
    main()
