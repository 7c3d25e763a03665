"""Write the result of a bench: docs/benchmarks/NAME.json with flat keys, and the page NAME.md."""

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/benchmarks"
RUNS = ROOT / "runs"
"""Logs and reports of single runs go here; git ignores the folder."""

ANSWERS_UNCACHED = {"FOVEATE_CACHE_BYTES": "0"}
UNCACHED = ANSWERS_UNCACHED | {"FOVEATE_FEATURE_BYTES": "0"}
"""Environment of measured servers: a bench repeats a few images, and the server must compute every answer."""

Figures = dict[str, float]
"""The flat figures of a bench, as in its JSON file."""
PACKAGES = ("torch", "fastapi", "uvicorn")
SETUP = "## Setup"
"""The heading of the table of settings, date and machine at the end of each page."""
MISSING = "-"
"""Stands in a table for a figure that was not measured."""
RENDER_HELP = "write the page again from the committed JSON file, with its date and machine; measure nothing"


def write(
    name: str,
    figures: Mapping[str, float],
    body: str,
    settings: Mapping[str, str] | None = None,
    packages: Sequence[str] = PACKAGES,
    folder: Path | None = None,
) -> Path:
    """Write the JSON file and the page. folder: where; None: FOLDER.

    `body` is Markdown with the method and the tables. The page ends with a table of the `settings` of this
    run, its date, the machine and the versions of the `packages`.
    """
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(dict(figures), indent=2) + "\n")
    setup = f"{SETUP}\n\n{table(['setting', 'value'], _setup(settings or {}, packages))}"
    return _write_page(folder / f"{name}.md", body, setup)


def render(name: str, body: str) -> Path:
    """Write the page alone and keep the table of settings, date and machine of the present page."""
    page = FOLDER / f"{name}.md"
    return _write_page(page, body, SETUP + page.read_text().rpartition(SETUP)[2].rstrip())


def _setup(settings: Mapping[str, str], packages: Sequence[str]) -> list[list[str]]:
    measured = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(packages),
    }
    return [[what, value] for what, value in {**settings, **measured}.items()]


def read(name: str, folder: Path | None = None) -> Figures:
    """The figures of the JSON file of an earlier run. folder: where; None: FOLDER."""
    figures: Figures = json.loads(((folder or FOLDER) / f"{name}.json").read_text())
    return figures


def _write_page(page: Path, body: str, setup: str) -> Path:
    page.write_text(f"{body.strip()}\n\n{setup}\n")
    return page


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal of one figure."""

    what: str
    """What the figure is, as the page says it."""
    key: str
    """Its key in the JSON file."""
    relation: Literal["at least", "at most", "below"]
    limit: float
    form: str = "{:g}"
    """How the measured value is printed."""
    limit_form: str = "{:g}"
    """How the limit is printed."""

    def row(self, figures: Mapping[str, float]) -> list[str]:
        """Cells for GOAL_HEAD: what was measured, the value, the goal, and whether the goal is met."""
        goal = f"{self.relation} {self.limit_form.format(self.limit)}"
        value = figures.get(self.key)
        if value is None:
            return [self.what, MISSING, goal, "not measured"]
        return [self.what, self.form.format(value), goal, "met" if self.is_met(value) else "**missed**"]

    def is_met(self, value: float) -> bool:
        """Whether this value reaches the goal."""
        if self.relation == "at least":
            return value >= self.limit
        return value <= self.limit if self.relation == "at most" else value < self.limit


GOAL_HEAD = ["figure", "measured", "goal", "result"]


def goal_table(goals: Sequence[Goal], figures: Mapping[str, float]) -> str:
    """A Markdown table of goals: figure, measured value, goal, met or missed."""
    return table(GOAL_HEAD, [goal.row(figures) for goal in goals])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(figures: Mapping[str, float], key: str, form: str) -> str:
    """One figure as a table cell; MISSING if it was not measured."""
    return form.format(figures[key]) if key in figures else MISSING


def left_out(failed: Mapping[str, str]) -> dict[str, str]:
    """For the table of settings: each server that could not be measured, with the reason."""
    return {f"{name} left out": reason for name, reason in failed.items()}


def machine() -> str:
    """The cores and the processor that a speed depends on."""
    return f"{len(os.sched_getaffinity(0))} cores of {cpu_model()}"


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """The versions of Python and of the installed ones of these packages."""
    installed = ", ".join(f"{package} {v}" for package in packages if (v := _version(package)))
    return f"Python {platform.python_version()}, {installed}"


def cpu_model() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "an unnamed processor")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
