"""What became of each request, and its one outcome."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from loadtests.load.answers import UNREADABLE, Answer, Parser

Kind = Literal["in time", "late", "refused", "expired", "error", "unanswered"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Answered before the deadline; after it; 429 or 503; 408 or 504; anything else that is no answer, broken
connections included; nothing at all for as long as was waited."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as it went over the wire; times in seconds from the start of the run."""

    index: int
    at: float
    """When it was to be sent; latency counts from here."""
    sent: float
    """When the generator got round to it."""
    ended: float
    """When the answer was complete, or the connection broke; NaN where neither happened."""
    status: int
    """0 where none came."""
    body: bytes
    problem: str
    """What went wrong on the way; empty where nothing did."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request, judged."""

    promise: str
    """Its class."""
    deadline_s: float
    """From the scheduled time."""
    at: float
    sent: float
    ended: float
    status: int
    kind: Kind
    rung: str = ""
    quality: float | None = None
    correct: bool | None = None
    """None where there is no answer to judge."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def latency_s(self) -> float:
        """From the scheduled time; NaN where it never ended."""
        return self.ended - self.at


def judge(exchange: Exchange, promise: str, deadline_s: float, label: str, parse: Parser) -> Record:
    """Exactly one outcome; an answer's content is compared with the picture's label."""
    answer, problem = None, exchange.problem
    if exchange.status == 200 and not problem:
        try:
            answer = parse(exchange.body)
        except UNREADABLE:
            problem = "an answer that the parser cannot read"
    kind = outcome(exchange, answer, deadline_s)
    if kind == "error" and not problem:
        problem = f"status {exchange.status}"
    said = answer or Answer("")
    return Record(
        promise, deadline_s, exchange.at, exchange.sent, exchange.ended, exchange.status, kind,
        said.rung, said.quality, None if answer is None else answer.label == label, said.timings_ms, problem,
    )  # fmt: skip


def outcome(exchange: Exchange, answer: Answer | None, deadline_s: float) -> Kind:
    """Of an exchange whose body held that answer, if any."""
    if answer is not None:
        return "in time" if exchange.ended - exchange.at <= deadline_s else "late"
    if exchange.status in (429, 503):
        return "refused"
    if exchange.status in (408, 504):
        return "expired"
    return "unanswered" if math.isnan(exchange.ended) else "error"


def counted(records: Sequence[Record]) -> dict[Kind, int]:
    """How many ended in each way, every way named."""
    found = Counter(record.kind for record in records)
    return {kind: found[kind] for kind in KINDS}
