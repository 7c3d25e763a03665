"""A small finished load test, for tests of its figures, its JSON and its report."""

import math
from collections.abc import Sequence
from dataclasses import replace

from loadtests.load.chat_records import ChatRecord
from loadtests.load.records import EndKind, RequestRecord
from loadtests.load.result import GeneratorCost, LoadTestRun

STATUS: dict[EndKind, int] = {
    "in time": 200, "late": 200, "refused": 429, "expired": 504, "error": 500, "unanswered": 0,
}  # fmt: skip


def load_record(
    at: float, kind: EndKind, latency_s: float = 0.05, rung: str = "", correct: bool | None = None
) -> RequestRecord:
    """A request that was sent 2 ms late and ended like this."""
    quality = {"": None, "half": 0.9, "full": 1.0}[rung]
    ended = math.nan if kind == "unanswered" else at + latency_s
    problem = "status 500" if kind == "error" else ""
    return RequestRecord(
        "all", 0.1, at, at + 0.002, ended, STATUS[kind], kind, rung, quality, correct, {"queue": 1.5}, problem
    )


RECORDS = (
    load_record(0.0, "in time", 0.04, "full", True),
    load_record(0.1, "in time", 0.06, "full", True),
    load_record(0.2, "in time", 0.08, "half", False),
    load_record(0.3, "late", 0.3, "half", True),
    load_record(1.0, "refused"),
    load_record(1.1, "expired"),
    load_record(1.2, "error"),
    load_record(1.9, "unanswered"),
)


def chat_record(at: float, kind: EndKind, turn: int = 0, asked: str = "name") -> RequestRecord:
    """A chat that ended like this, with its first token after 20 ms."""
    record = load_record(at, kind, 0.05, "full" if kind in ("in time", "late") else "", kind == "in time")
    chat = ChatRecord(asked, turn, False, 8, 0.1)
    if record.rung:
        chat = replace(
            chat, first_token_s=0.02, token_s=0.01, gap_s=0.015, tokens=4, finish="stop", prompt_tokens=20,
            cached_tokens=5, visual_tokens=16,
        )  # fmt: skip
    return replace(record, chat=chat)


CHATS = (
    chat_record(0.0, "in time"),
    chat_record(0.5, "in time", 1, "count"),
    chat_record(1.0, "late", 1),
    chat_record(1.5, "refused"),
)


def load_run(
    name: str = "a <run>", records: Sequence[RequestRecord] = RECORDS, span_s: float = 2.0
) -> LoadTestRun:
    """A run of these records."""
    settings = {"name": "", "shape": "step:4", "rate": 4.0}
    cost = GeneratorCost(0.002, 2.5, 3, len(records))
    return LoadTestRun(
        name, "python -m loadtests.load --rate 4", "2026-01-02", "a machine", settings, span_s, cost, records
    )
