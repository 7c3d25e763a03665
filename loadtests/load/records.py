"""The exchange of each request with the server, and the evaluated record of it."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from loadtests.load.answers import UNREADABLE, ParsedAnswer, Parser
from loadtests.load.chat_answers import StreamError
from loadtests.load.chat_records import ChatRecord, is_right

EndKind = Literal["in time", "late", "refused", "expired", "error", "unanswered"]
"""How a request ended.

in time: answered before the deadline. late: answered after it, or a chat whose first token came after the
deadline of the first token. refused: status 429 or 503. expired: status
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
    received: Sequence[tuple[int, float]] = ()
    """For each part of the body, the bytes of the body up to its end, and when it came."""

    def received_at(self, end: int) -> float:
        """When the first `end` bytes of the body were complete. Raises LookupError if they never were."""
        return self.received[bisect_left(self.received, (end, -math.inf))][1]


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
    chat: ChatRecord | None = None
    """None for a request that is no chat."""

    @property
    def latency_s(self) -> float:
        """Seconds from the scheduled time to the end; NaN if the request was never answered."""
        return self.ended - self.at


def evaluate(
    exchange: Exchange,
    slo_class: str,
    deadline_s: float,
    label: str,
    parse: Parser,
    chat: ChatRecord | None = None,
) -> RequestRecord:
    """The record of an exchange: its one end kind, and whether the answer is the label of the image.

    chat: what is known of a chat before its answer. Its right answer is the label.
    """
    answer, problem, expired = None, exchange.problem, False
    if exchange.status == 200 and not problem:
        try:
            answer = parse(exchange.body)
            if chat is not None and answer.stream is not None:
                times = [exchange.received_at(end) for end in answer.stream.ends]
                chat = chat.answered(exchange.at, times, answer.stream)
        except StreamError as error:
            problem, expired = error.problem, error.expired
        except UNREADABLE:
            answer, problem = None, "an answer that the parser cannot read"
    kind = end_kind(exchange, answer, deadline_s)
    if kind == "in time" and chat is not None and chat.first_token_late:
        kind = "late"
    elif expired:
        kind = "expired"
    if kind == "error" and not problem:
        problem = f"status {exchange.status}"
    content = answer or ParsedAnswer("")
    correct = None
    if answer is not None:
        correct = answer.label == label if chat is None else is_right(answer.label, label)
    return RequestRecord(
        slo_class, deadline_s, exchange.at, exchange.sent, exchange.ended, exchange.status, kind,
        content.rung, content.quality, correct, content.timings_ms,
        problem, chat,
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
