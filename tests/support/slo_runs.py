"""Runs of a two-rung server, for tests of the bench on deadlines."""

from collections.abc import Iterable

from foveate.core.model import Rung
from foveate.core.plan import Plan
from loadtests.load.records import EndKind, RequestRecord
from loadtests.load.result import GeneratorCost, LoadTestRun

FULL = Plan("tiny", 32)
LIGHT = Plan("tiny", 32, reducer="evit:0.5")
RUNGS = (Rung(LIGHT, 0.25, 5, 0.8, {1: 0.01, 8: 0.02}), Rung(FULL, 1.0, 10, 1.0, {1: 0.1, 8: 0.8}))


def slo_record(
    at: float, kind: EndKind = "in time", rung: str = "full", **timings_ms: float
) -> RequestRecord:
    """A request that was answered after 150 ms, or refused for an empty rung."""
    quality = {"full": 1.0, "evit:0.5": 0.8, "": None}[rung]
    status = 200 if rung else 429
    return RequestRecord(
        "all", 0.5, at, at, at + 0.15, status, kind, rung, quality, bool(rung) or None, timings_ms
    )


def slo_run(records: Iterable[RequestRecord], span_s: float) -> LoadTestRun:
    """A run of these records."""
    all_records = tuple(records)
    cost = GeneratorCost(0.1, span_s, 1, len(all_records))
    settings = {"shape": "step:4", "rate": len(all_records) / span_s, "seed": 0}
    return LoadTestRun("a run", "python", "2026-01-01", "a machine", settings, span_s, cost, all_records)


def step_run(missed_until: float, degraded_until: float) -> LoadTestRun:
    """Ten requests per second for 6 s; refused from 2 s to the first time, degraded from then to the
    second time, and answered at full otherwise."""

    def record(at: float) -> RequestRecord:
        if 2 <= at < missed_until:
            return slo_record(at, "refused", "")
        return slo_record(at, "in time", "evit:0.5" if 2 <= at < degraded_until else "full")

    return slo_run((record(n / 10) for n in range(60)), 6.0)
