"""Every bench writes docs/benchmarks/NAME.json, flat keys, and NAME.md with method, machine and date."""

import datetime
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/benchmarks"
RUNS = ROOT / "runs"
"""Logs and reports of single runs go here; git ignores the folder."""

ANSWERS_UNCACHED = {"FOVEATE_CACHE_BYTES": "0"}
UNCACHED = ANSWERS_UNCACHED | {"FOVEATE_FEATURE_BYTES": "0"}
"""For servers that are measured: a few pictures come again and again, and every answer is to be computed."""


def write(name: str, figures: Mapping[str, float], body: str) -> Path:
    """Write both files; `body` is Markdown that says what was done and what came out."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(dict(figures), indent=2) + "\n")
    page = FOLDER / f"{name}.md"
    page.write_text(f"{body.strip()}\n\nMeasured {datetime.date.today().isoformat()} on {machine()}.\n")
    return page


def machine() -> str:
    """The machine and the versions that a speed depends on, in one line."""
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{p} {v}" for p in ("torch", "fastapi", "uvicorn") if (v := _version(p)))
    return f"{cores} cores of {cpu_model()}, Python {platform.python_version()}, {packages}"


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "an unnamed processor")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
