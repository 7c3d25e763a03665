"""The exchange of each request with the server, and the evaluated record of it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from loadtests.load.answers import UNREADABLE, ParsedAnswer, Parser

EndKind = Literal["in time", "late", "refused", "expired", "error", "unanswered"]
"""How a request ended.

in time: answered before the deadline. late: answered after it. refused: status 429 or 503. expired: status
408 or 504. error: another status, an unreadable answer or a broken connection. unanswered: no answer until
the timeout of the load test.
"""
END_KINDS: tuple[EndKind, ...] = get_args(EndKind)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, as sent and received. Times are seconds from the start of the run."""

    index: int
    at: float
    """The scheduled time; latency counts from here."""
    sent: float
    """When the generator sent the request."""
    ended: float
    """When the answer was complete or the connection broke; NaN for neither."""
    status: int
    """The HTTP status; 0 for no answer."""
    body: bytes
    problem: str
    """Why there is no answer; empty if there is one."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, evaluated."""

    slo_class: str
    deadline_s: float
    """From the scheduled time."""
    at: float
    sent: float
    ended: float
    status: int
    kind: EndKind
    rung: str = ""
    quality: float | None = None
    correct: bool | None = None
    """Whether the answer is the label; None for no answer."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def latency_s(self) -> float:
        """Seconds from the scheduled time to the end; NaN if the request was never answered."""
        return self.ended - self.at


def evaluate(
    exchange: Exchange, slo_class: str, deadline_s: float, label: str, parse: Parser
) -> RequestRecord:
    """The record of an exchange: its one end kind, and whether the answer is the label of the image."""
    answer, problem = None, exchange.problem
    if exchange.status == 200 and not problem:
        try:
            answer = parse(exchange.body)
        except UNREADABLE:
            problem = "an answer that the parser cannot read"
    kind = end_kind(exchange, answer, deadline_s)
    if kind == "error" and not problem:
        problem = f"status {exchange.status}"
    content = answer or ParsedAnswer("")
    return RequestRecord(
        slo_class, deadline_s, exchange.at, exchange.sent, exchange.ended, exchange.status, kind,
        content.rung, content.quality, None if answer is None else answer.label == label, content.timings_ms,
        problem,
    )  # fmt: skip


def end_kind(exchange: Exchange, answer: ParsedAnswer | None, deadline_s: float) -> EndKind:
    """How an exchange ended; `answer` is the content of its body, None if it has none."""
    if answer is not None:
        return "in time" if exchange.ended - exchange.at <= deadline_s else "late"
    if exchange.status in (429, 503):
        return "refused"
    if exchange.status in (408, 504):
        return "expired"
    return "unanswered" if math.isnan(exchange.ended) else "error"


def count_kinds(records: Sequence[RequestRecord]) -> dict[EndKind, int]:
    """The number of requests for each end kind, zeros included."""
    counts = Counter(record.kind for record in records)
    return {kind: counts[kind] for kind in END_KINDS}
