"""Figures from records: attainment, accuracy, latencies, rates, and all of them over time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.load.chat_records import ChatRecord
from loadtests.load.chat_score import chat_figures
from loadtests.load.records import END_KINDS, RequestRecord, count_kinds

WINDOW_S = 0.25
ANSWERED = ("in time", "late")


def attainment(records: Sequence[RequestRecord]) -> float:
    """Share of all offered requests that were answered before their deadline; NaN for no requests."""
    return _share(record.kind == "in time" for record in records)


def accuracy(records: Sequence[RequestRecord]) -> float:
    """The share of right answers among those in time; NaN if there are none."""
    return _share(bool(record.correct) for record in records if record.kind == "in time")


def quality(records: Sequence[RequestRecord]) -> float:
    """Mean quality that the server reports for its answers, late ones included; NaN if it reports none."""
    reported = [record.quality for record in records if record.quality is not None]
    return float(np.mean(reported)) if reported else math.nan


def rungs(records: Sequence[RequestRecord]) -> list[str]:
    """All rungs that answered, the lowest quality first."""
    quality_of = {r.rung: -1.0 if r.quality is None else r.quality for r in records if r.rung}
    return sorted(quality_of, key=lambda rung: (quality_of[rung], rung))


def figures(records: Sequence[RequestRecord], span_s: float) -> dict[str, float | None]:
    """Flat figures of a run or of a part of it; None for a figure without any data.

    `span_s` is the length of the schedule.
    """
    answered = [r for r in records if r.kind in ANSWERED]
    latencies = np.array([r.latency_s * 1e3 for r in answered])
    lags = np.array([(r.sent - r.at) * 1e3 for r in records])
    # If sends or answers end after the schedule, their rate is over the longer time.
    sending_s = max([span_s, *(r.sent for r in records)])
    answering_s = max([span_s, *(r.ended for r in answered)])
    values = {
        "offered": len(records),
        **{kind.replace(" ", "_"): count for kind, count in count_kinds(records).items()},
        "attainment": attainment(records),
        "accuracy": accuracy(records),
        "accuracy_answered": _share(bool(r.correct) for r in answered),
        "correct_in_time": _share(r.kind == "in time" and bool(r.correct) for r in records),
        "quality": quality(records),
        "offered_per_s": len(records) / span_s,
        "sent_per_s": len(records) / sending_s,
        "answered_per_s": len(answered) / answering_s,
        "latency_ms_p50": _percentile(latencies, 50),
        "latency_ms_p90": _percentile(latencies, 90),
        "latency_ms_p99": _percentile(latencies, 99),
        "lag_ms_p50": _percentile(lags, 50),
        "lag_ms_p99": _percentile(lags, 99),
        "lag_ms_max": _percentile(lags, 100),
        **chat_figures(_chats(records), _chats(answered), answering_s),
    }
    return {name: rounded(value) for name, value in values.items()}


def _chats(records: Sequence[RequestRecord]) -> list[ChatRecord]:
    return [record.chat for record in records if record.chat is not None]


def rounded(value: float) -> float | None:
    """Round to five decimals, which is finer than the noise; NaN becomes None, because JSON has no NaN."""
    return None if math.isnan(value) else round(value, 5)


@dataclass(frozen=True, slots=True)
class Window:
    """Figures of the requests with scheduled times in [start, start + WINDOW_S)."""

    start: float
    offered: int
    attainment: float
    accuracy: float
    quality: float
    kinds: dict[str, int]
    rungs: dict[str, int]


def windows(records: Sequence[RequestRecord], width_s: float = WINDOW_S) -> list[Window]:
    """The windows of a run by scheduled time, without those that have no requests."""
    by_window: dict[int, list[RequestRecord]] = {}
    for record in records:
        by_window.setdefault(int(record.at / width_s), []).append(record)
    return [_window(n * width_s, by_window[n]) for n in sorted(by_window)]


def _window(start: float, records: Sequence[RequestRecord]) -> Window:
    kinds: dict[str, int] = {kind: sum(r.kind == kind for r in records) for kind in END_KINDS}
    by_rung = {rung: sum(r.rung == rung for r in records) for rung in rungs(records)}
    return Window(
        start, len(records), attainment(records), accuracy(records), quality(records), kinds, by_rung
    )


def _share(values: Iterator[bool]) -> float:
    flags = list(values)
    return sum(flags) / len(flags) if flags else math.nan


def _percentile(values: np.ndarray[tuple[int], np.dtype[np.float64]], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else math.nan
