"""Figures from records: attainment and accuracy together, latencies, rates, and how they went over time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.load.records import KINDS, Record, counted

WINDOW_S = 0.25
ANSWERED = ("in time", "late")


def attainment(records: Sequence[Record]) -> float:
    """Share of all that were offered that was answered before its deadline; NaN where there are none."""
    return _share(record.kind == "in time" for record in records)


def accuracy(records: Sequence[Record]) -> float:
    """Top-1 against the labels among those answered in time; NaN where there are none."""
    return _share(bool(record.correct) for record in records if record.kind == "in time")


def quality(records: Sequence[Record]) -> float:
    """Mean quality that the server says it answered with, late answers included; NaN where it says none."""
    said = [record.quality for record in records if record.quality is not None]
    return float(np.mean(said)) if said else math.nan


def rungs(records: Sequence[Record]) -> list[str]:
    """Every rung answered under, the lowest quality first."""
    best = {r.rung: -1.0 if r.quality is None else r.quality for r in records if r.rung}
    return sorted(best, key=lambda rung: (best[rung], rung))


def figures(records: Sequence[Record], span_s: float) -> dict[str, float | None]:
    """Flat figures of a run or of a class in it; `span_s`: how long the schedule was. None where a
    figure has nothing to say."""
    answered = [r for r in records if r.kind in ANSWERED]
    latencies = np.array([r.latency_s * 1e3 for r in answered])
    lags = np.array([(r.sent - r.at) * 1e3 for r in records])
    # Where the generator is late, or answers come after the schedule's end, a rate is over all of that.
    sending = max([span_s, *(r.sent for r in records)])
    answering = max([span_s, *(r.ended for r in answered)])
    found = {
        "offered": len(records),
        **{kind.replace(" ", "_"): count for kind, count in counted(records).items()},
        "attainment": attainment(records),
        "accuracy": accuracy(records),
        "accuracy_answered": _share(bool(r.correct) for r in answered),
        "correct_in_time": _share(r.kind == "in time" and bool(r.correct) for r in records),
        "quality": quality(records),
        "offered_per_s": len(records) / span_s,
        "sent_per_s": len(records) / sending,
        "answered_per_s": len(answered) / answering,
        "latency_ms_p50": _percentile(latencies, 50),
        "latency_ms_p90": _percentile(latencies, 90),
        "latency_ms_p99": _percentile(latencies, 99),
        "lag_ms_p50": _percentile(lags, 50),
        "lag_ms_p99": _percentile(lags, 99),
        "lag_ms_max": _percentile(lags, 100),
    }
    return {name: rounded(value) for name, value in found.items()}


def rounded(value: float) -> float | None:
    """Five digits after the point are more than any of this is sure of; NaN is no JSON."""
    return None if math.isnan(value) else round(value, 5)


@dataclass(frozen=True, slots=True)
class Window:
    """Requests whose scheduled times lie in [start, start + WINDOW_S)."""

    start: float
    offered: int
    attainment: float
    accuracy: float
    quality: float
    kinds: dict[str, int]
    rungs: dict[str, int]


def windows(records: Sequence[Record], width_s: float = WINDOW_S) -> list[Window]:
    """A run cut up by scheduled time, windows in which nothing was offered left out."""
    cut: dict[int, list[Record]] = {}
    for record in records:
        cut.setdefault(int(record.at / width_s), []).append(record)
    return [_window(n * width_s, cut[n]) for n in sorted(cut)]


def _window(start: float, records: Sequence[Record]) -> Window:
    kinds: dict[str, int] = {kind: sum(r.kind == kind for r in records) for kind in KINDS}
    taken = {rung: sum(r.rung == rung for r in records) for rung in rungs(records)}
    return Window(start, len(records), attainment(records), accuracy(records), quality(records), kinds, taken)


def _share(values: Iterator[bool]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _percentile(values: np.ndarray[tuple[int], np.dtype[np.float64]], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else math.nan
