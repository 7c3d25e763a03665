"""A finished run and its JSON, which holds the figures and every request."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from typing import Any

import orjson

from loadtests.load.chat_records import PLACES, ChatRecord
from loadtests.load.records import RequestRecord
from loadtests.load.score import figures, rounded, rungs, windows

FIELDS = (
    "slo_class", "deadline_s", "at", "sent", "ended", "status", "kind", "rung", "quality", "correct",
    "problem",
)  # fmt: skip
CHAT_FIELDS = tuple(field.name for field in fields(ChatRecord))
GROUP_FIGURES = (
    "offered", "attainment", "accuracy", "correct_in_time", "ttft_ms_p50", "ttft_ms_p99", "cached_share",
)  # fmt: skip
"""The figures of a group of chats."""
"""The fields of a record that the JSON holds, besides its timings."""
JSON_KEYS = {"slo_class": "promise"}
"""Fields whose key in the JSON differs from their name, so that older files stay readable."""

ATTAINMENT_GOAL = 0.99
"""The share of requests in time from which a rate counts as sustained."""
MAX_LAG_MS = 50.0
"""The lag of the generator at p99 above which a run is doubtful: it is a large part of a deadline."""


@dataclass(frozen=True, slots=True)
class GeneratorCost:
    """Processor time and connections of the generator, from the first send to the last answer."""

    cpu_s: float
    elapsed_s: float
    connections: int
    """TCP connections opened."""
    requests: int

    def figures(self) -> dict[str, float | None]:
        """The cost as flat figures."""
        return {
            "generator_cpu_s": rounded(self.cpu_s),
            "generator_cpu_us_per_request": rounded(self.cpu_s / self.requests * 1e6),
            "generator_core_share": rounded(self.cpu_s / self.elapsed_s),
            "elapsed_s": rounded(self.elapsed_s),
            "connections": self.connections,
        }


@dataclass(frozen=True, slots=True)
class LoadTestRun:
    """A finished run: its settings, its records and the cost of the generator."""

    name: str
    command: str
    date: str
    machine: str
    settings: Mapping[str, Any]
    span_s: float
    """The length of the schedule."""
    cost: GeneratorCost
    records: Sequence[RequestRecord]

    def figures(self) -> dict[str, float | None]:
        """All figures of the run and of the generator, flat."""
        return figures(self.records, self.span_s) | self.cost.figures()

    def by_slo_class(self) -> dict[str, dict[str, float | None]]:
        """The figures of each SLO class."""
        return self._groups(lambda record: record.slo_class)

    def by_question(self) -> dict[str, dict[str, float | None]]:
        """Some figures of each kind of question; empty for a run without chats."""
        return self._chat_groups(lambda chat: chat.kind)

    def by_place(self) -> dict[str, dict[str, float | None]]:
        """Some figures of questions about new pictures, about repeated ones, and of follow-ups."""
        groups = self._chat_groups(lambda chat: chat.place)
        return {place: groups[place] for place in PLACES if place in groups}

    def _chat_groups(self, name_of: Callable[[ChatRecord], str]) -> dict[str, dict[str, float | None]]:
        groups = self._groups(lambda record: None if record.chat is None else name_of(record.chat))
        return {name: {key: values[key] for key in GROUP_FIGURES} for name, values in groups.items()}

    def _groups(self, name_of: Callable[[RequestRecord], str | None]) -> dict[str, dict[str, float | None]]:
        """The figures of each group of records; those with the name None belong to none."""
        parts: dict[str, list[RequestRecord]] = {}
        for record in self.records:
            name = name_of(record)
            if name is not None:
                parts.setdefault(name, []).append(record)
        return {name: figures(parts[name], self.span_s) for name in sorted(parts)}

    def by_rung(self) -> dict[str, dict[str, float | None]]:
        """Answers, accuracy and profiled quality of each rung; the lowest quality first."""
        by_rung = {}
        for rung in rungs(self.records):
            part = [r for r in self.records if r.rung == rung]
            correct = sum(bool(r.correct) for r in part) / len(part)
            quality = next((r.quality for r in part if r.quality is not None), None)
            by_rung[rung] = {"answers": len(part), "accuracy": rounded(correct), "quality": quality}
        return by_rung

    @property
    def series(self) -> str:
        """The name that runs at several rates share."""
        return str(self.settings.get("name") or self.settings["shape"])

    @property
    def warning(self) -> str:
        """Why the run says little about the server; empty if the generator kept up."""
        values = self.figures()
        lag, sent, offered = (values[name] or 0.0 for name in ("lag_ms_p99", "sent_per_s", "offered_per_s"))
        if lag <= MAX_LAG_MS and sent >= 0.99 * offered:
            return ""
        return (
            f"the generator fell behind, {lag:.0f} ms at p99 and {sent:.1f} of {offered:.1f} requests/s, "
            "so the run measures the machine more than the server"
        )

    def problems(self) -> dict[str, int]:
        """The problems of requests without an answer, with their counts; the most frequent first."""
        return dict(Counter(record.problem for record in self.records if record.problem).most_common())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        questions = self.by_question()
        return {
            "name": self.name,
            "command": self.command,
            "date": self.date,
            "machine": self.machine,
            "settings": dict(self.settings),
            "span_s": self.span_s,
            "cost": asdict(self.cost),
            "doubt": self.warning,
            "figures": self.figures(),
            "by_promise": self.by_slo_class(),
            "by_rung": self.by_rung(),
            **({"by_question": questions, "by_place": self.by_place()} if questions else {}),
            "windows": [_rounded_fields(asdict(window)) for window in windows(self.records)],
            "requests": _columns(self.records),
        }


def from_dict(saved: Mapping[str, Any]) -> LoadTestRun:
    """The run from its `as_dict`; its figures are computed from its records again."""
    columns = saved["requests"]
    timings, chats = columns["timings_ms"], columns.get("chat")
    records = []
    for n in range(len(columns["at"])):
        values = {name: columns[JSON_KEYS.get(name, name)][n] for name in FIELDS}
        values["ended"] = math.nan if values["ended"] is None else values["ended"]
        timings_ms = {stage: times[n] for stage, times in timings.items() if times[n] is not None}
        chat = ChatRecord(**{name: chats[name][n] for name in CHAT_FIELDS}) if chats else None
        records.append(RequestRecord(**values, timings_ms=timings_ms, chat=chat))
    same = {name: saved[name] for name in ("name", "command", "date", "machine", "settings", "span_s")}
    return LoadTestRun(**same, cost=GeneratorCost(**saved["cost"]), records=records)


def _columns(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """One list per field: a tenth of the size of a list of requests."""
    columns: dict[str, Any] = {
        JSON_KEYS.get(name, name): [_json_value(getattr(r, name)) for r in records] for name in FIELDS
    }
    stages = dict.fromkeys(stage for record in records for stage in record.timings_ms)
    columns["timings_ms"] = {stage: [r.timings_ms.get(stage) for r in records] for stage in stages}
    if records and all(record.chat is not None for record in records):
        columns["chat"] = {
            name: [_json_value(getattr(record.chat, name)) for record in records] for name in CHAT_FIELDS
        }
    return columns


def _json_value(value: Any) -> Any:
    """Floats rounded to microseconds, NaN as None."""
    return (None if math.isnan(value) else round(value, 6)) if isinstance(value, float) else value


def _rounded_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in values.items()}


def as_json(runs: Sequence[LoadTestRun]) -> bytes:
    """Several runs in one file."""
    rates = {name: highest_good_rate(points) for name, points in by_rate(runs).items()}
    return orjson.dumps({"rate_kept": rates, "runs": [run.as_dict() for run in runs]})


def by_rate(runs: Sequence[LoadTestRun]) -> dict[str, list[tuple[float, float]]]:
    """(offered rate, attainment) of each series with several runs, the lowest rate first."""
    series: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        values = run.figures()
        point = values["offered_per_s"] or 0.0, values["attainment"] or 0.0
        series.setdefault(run.series, []).append(point)
    return {name: sorted(points) for name, points in series.items() if len(points) > 1}


def highest_good_rate(points: Sequence[tuple[float, float]]) -> float | None:
    """The highest rate that reached ATTAINMENT_GOAL, as all lower rates did; None if the lowest failed."""
    good = list(takewhile(lambda point: point[1] >= ATTAINMENT_GOAL, points))
    return good[-1][0] if good else None


def read_runs(data: bytes) -> list[LoadTestRun]:
    """The runs in the output of `as_json`."""
    return [from_dict(saved) for saved in orjson.loads(data)["runs"]]
