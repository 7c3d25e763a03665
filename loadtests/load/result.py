"""One finished run, and its JSON: figures for a program to read, and every request, to be judged anew."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import orjson

from loadtests.load.records import Record
from loadtests.load.score import figures, rounded, rungs, windows

COLUMNS = (
    "promise",
    "deadline_s",
    "at",
    "sent",
    "ended",
    "status",
    "kind",
    "rung",
    "quality",
    "correct",
    "problem",
)


GOAL = 0.99
"""The attainment that counts as a promise kept."""
LATE_MS = 50.0
"""A generator later than this at p99 takes a good part of a deadline for itself."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the generator itself took from the machine, from the first send to the last answer."""

    cpu_s: float
    elapsed_s: float
    connections: int
    """TCP connections opened."""
    requests: int

    def figures(self) -> dict[str, float | None]:
        return {
            "generator_cpu_s": rounded(self.cpu_s),
            "generator_cpu_us_per_request": rounded(self.cpu_s / self.requests * 1e6),
            "generator_core_share": rounded(self.cpu_s / self.elapsed_s),
            "elapsed_s": rounded(self.elapsed_s),
            "connections": self.connections,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """What was done, what came of it, and what it took."""

    name: str
    command: str
    date: str
    machine: str
    settings: Mapping[str, Any]
    span_s: float
    """How long the schedule was."""
    cost: Cost
    records: Sequence[Record]

    def figures(self) -> dict[str, float | None]:
        """Everything in numbers, flat."""
        return figures(self.records, self.span_s) | self.cost.figures()

    def by_promise(self) -> dict[str, dict[str, float | None]]:
        """The same figures for each class."""
        parts: dict[str, list[Record]] = {}
        for record in self.records:
            parts.setdefault(record.promise, []).append(record)
        return {name: figures(parts[name], self.span_s) for name in sorted(parts)}

    def by_rung(self) -> dict[str, dict[str, float | None]]:
        """How many were answered under each rung, and how right they were; the lowest quality first."""
        found = {}
        for rung in rungs(self.records):
            part = [r for r in self.records if r.rung == rung]
            right = sum(bool(r.correct) for r in part) / len(part)
            quality = next((r.quality for r in part if r.quality is not None), None)
            found[rung] = {"answers": len(part), "accuracy": rounded(right), "quality": quality}
        return found

    @property
    def series(self) -> str:
        """What runs at several rates have in common."""
        return str(self.settings.get("name") or self.settings["shape"])

    @property
    def doubt(self) -> str:
        """Why the run says little about the server; empty where nothing speaks against it."""
        found = self.figures()
        lag, sent, offered = (found[name] or 0.0 for name in ("lag_ms_p99", "sent_per_s", "offered_per_s"))
        if lag <= LATE_MS and sent >= 0.99 * offered:
            return ""
        return (
            f"the generator fell behind, {lag:.0f} ms at p99 and {sent:.1f} of {offered:.1f} requests/s, "
            "so the run tells of the machine more than of the server"
        )

    def problems(self) -> dict[str, int]:
        """What went wrong on the way, and how often; the most frequent first."""
        return dict(Counter(record.problem for record in self.records if record.problem).most_common())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return {
            "name": self.name,
            "command": self.command,
            "date": self.date,
            "machine": self.machine,
            "settings": dict(self.settings),
            "span_s": self.span_s,
            "cost": asdict(self.cost),
            "doubt": self.doubt,
            "figures": self.figures(),
            "by_promise": self.by_promise(),
            "by_rung": self.by_rung(),
            "windows": [_plain(asdict(window)) for window in windows(self.records)],
            "requests": _columns(self.records),
        }


def from_dict(said: Mapping[str, Any]) -> Run:
    """The run that `as_dict` told of; its figures are made from its records."""
    columns = said["requests"]
    timings = columns["timings_ms"]
    records = []
    for n in range(len(columns["at"])):
        fields = {name: columns[name][n] for name in COLUMNS}
        fields["ended"] = math.nan if fields["ended"] is None else fields["ended"]
        took = {stage: values[n] for stage, values in timings.items() if values[n] is not None}
        records.append(Record(**fields, timings_ms=took))
    same = {name: said[name] for name in ("name", "command", "date", "machine", "settings", "span_s")}
    return Run(**same, cost=Cost(**said["cost"]), records=records)


def _columns(records: Sequence[Record]) -> dict[str, Any]:
    """A list for each field: a tenth of the size that a list of requests would have."""
    columns: dict[str, Any] = {name: [_short(getattr(r, name)) for r in records] for name in COLUMNS}
    stages = dict.fromkeys(stage for record in records for stage in record.timings_ms)
    columns["timings_ms"] = {stage: [r.timings_ms.get(stage) for r in records] for stage in stages}
    return columns


def _short(value: Any) -> Any:
    """Microseconds are enough."""
    return (None if math.isnan(value) else round(value, 6)) if isinstance(value, float) else value


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in fields.items()}


def as_json(runs: Sequence[Run]) -> bytes:
    """Several runs in one file."""
    kept = {name: rate_kept(points) for name, points in by_rate(runs).items()}
    return orjson.dumps({"rate_kept": kept, "runs": [run.as_dict() for run in runs]})


def by_rate(runs: Sequence[Run]) -> dict[str, list[tuple[float, float]]]:
    """(offered rate, attainment) by what was run, the lowest rate first, where there are several."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        figures = run.figures()
        point = figures["offered_per_s"] or 0.0, figures["attainment"] or 0.0
        found.setdefault(run.series, []).append(point)
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def rate_kept(points: Sequence[tuple[float, float]]) -> float | None:
    """The highest of these rates up to which every one reached the goal; None where the lowest did not."""
    kept = list(takewhile(lambda point: point[1] >= GOAL, points))
    return kept[-1][0] if kept else None


def read_runs(data: bytes) -> list[Run]:
    """What `as_json` wrote."""
    return [from_dict(said) for said in orjson.loads(data)["runs"]]
