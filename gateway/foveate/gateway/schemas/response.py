"""The parts that all answers have in common, the response headers, and responses that a cache can store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from starlette.responses import Response

from foveate.cache.entry import CacheEntry
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome, Result

EXPOSED_HEADERS = (
    "x-request-id", "server-timing", "x-foveate-plan", "x-foveate-quality", "x-foveate-visual-tokens",
    "x-slo-met", "x-cache", "retry-after", "accept-encoding",
)  # fmt: skip
"""The headers of responses that web pages of other origins may read."""
StageSeconds = dict[str, float]
"""Seconds by stage, in the order of the stages."""


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request that has been answered: its outcomes, and all that the response says besides the answer."""

    id: str
    card: ModelCard
    outcomes: Sequence[Outcome]
    """One for each tile that was run on its own."""
    pinned: bool
    """Whether the client chose the plan."""
    slo_met: bool | None
    """Whether the deadline was met; None without a deadline."""
    timings_s: StageSeconds
    cache: str = ""
    """Whether the image's features were cached, hit or miss; empty where no cache was asked."""

    @property
    def lowest_quality(self) -> Outcome:
        """The outcome whose plan has the lowest quality: it stands for the whole answer."""
        return min(self.outcomes, key=lambda outcome: self.card.quality_of(outcome.plan) or 0.0)

    def compute(self) -> dict[str, object]:
        """The field `compute` of the answer: the cost of all outcomes together."""
        lowest, results = self.lowest_quality, [outcome.result for outcome in self.outcomes]
        plan = lowest.plan
        return {
            "plan": str(plan),
            "rung": plan.relative_to(self.card.full),
            "quality": self.card.quality_of(plan),
            "tokens": sum(result.tokens for result in results),
            "tokens_full": len(results) * self.card.ladder[-1].tokens,
            "exit_layer": max(result.exit_layer for result in results),
            "gflops": round(sum(result.gflops for result in results), 4),
            "degraded": not self.pinned and plan != self.card.full,
            "chosen": chosen_field(self.card, lowest.result),
        }

    def to_response(self, content: Mapping[str, object] | bytes) -> "CacheableResponse":
        """The response with these JSON fields, or with this PNG."""
        plan, is_image = self.lowest_quality.plan, isinstance(content, bytes)
        quality, short_lived = self.card.quality_of(plan), False
        fields = {"plan": str(plan), "quality": quality, "pictured": is_image}
        if isinstance(content, bytes):
            part = content
        else:
            part = orjson.dumps({"model": self.card.name, **content})
            # The request asked for an explanation and got none, which another request might get.
            short_lived = content.get("explain", "not requested") is None
        entry = CacheEntry(quality or 0.0, fields, (part,), short_lived)
        return CacheableResponse(entry, ReplyHeaders(self.id, self.slo_met, self.timings_s), self.cache)


@dataclass(frozen=True, slots=True)
class ReplyHeaders:
    """The parts of a response that belong to one request and are not cached."""

    id: str
    slo_met: bool | None
    """Whether the deadline was met; None without a deadline."""
    timings_s: StageSeconds

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage."""
        return {name: round(seconds * 1e3, 3) for name, seconds in self.timings_s.items()}


class AnswerResponse(Response):
    """The response of an answered request, with what traces say of it."""

    plan: str
    """The plan of the answer."""
    quality: float | None
    """Its measured quality; None if it was never measured."""
    timings_s: StageSeconds


class CacheableResponse(AnswerResponse):
    """A response with the cache entry that repeats it for identical requests."""

    def __init__(self, entry: CacheEntry, reply: ReplyHeaders, cache: str = "") -> None:
        """cache: the value of the header x-cache; empty leaves it out."""
        self.entry, self.reply = entry, reply
        self.plan, self.quality, self.timings_s = str(entry.fields["plan"]), entry.quality, reply.timings_s
        (part,), timings_ms = entry.parts, reply.timings_ms
        headers = _headers(entry, reply, timings_ms, cache)
        if entry.fields["pictured"]:
            super().__init__(part, headers=headers, media_type="image/png")
            return
        # The cached part was rendered once; only the id and the timings differ between requests.
        members = orjson.dumps(reply.id), part[1:-1], orjson.dumps(timings_ms)
        super().__init__(
            b'{"id":%b,%b,"timings_ms":%b}' % members, headers=headers, media_type="application/json"
        )


def _headers(
    entry: CacheEntry, reply: ReplyHeaders, timings_ms: Mapping[str, float], cache: str
) -> dict[str, str]:
    headers = {
        "x-request-id": reply.id,
        "x-foveate-plan": str(entry.fields["plan"]),
        "server-timing": _server_timing(timings_ms),
    }
    if entry.fields["quality"] is not None:
        headers["x-foveate-quality"] = f"{entry.quality:.4f}"
    if reply.slo_met is not None:
        headers["x-slo-met"] = str(reply.slo_met).lower()
    if cache:
        headers["x-cache"] = cache
    return headers


def server_timing(timings_s: StageSeconds) -> str:
    """The value of the header Server-Timing."""
    return _server_timing({name: round(seconds * 1e3, 3) for name, seconds in timings_s.items()})


def _server_timing(timings_ms: Mapping[str, float]) -> str:
    return ", ".join([f"{name};dur={ms}" for name, ms in timings_ms.items()])


def chosen_field(card: ModelCard, result: Result) -> str | None:
    """The rung that a content plan chose, by its name in the ladder; None under any other plan."""
    return None if result.chosen is None else result.chosen.relative_to(card.full)
