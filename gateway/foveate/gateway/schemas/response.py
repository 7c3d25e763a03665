"""What every answer tells besides itself, and how it is told to others who ask the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from starlette.responses import Response

from foveate.cache.entry import CacheEntry
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome, Result
from foveate.gateway.objective import quality_of

Timings = dict[str, float]
"""Seconds, in the order in which they passed."""


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """What every answer tells besides itself."""

    id: str
    card: ModelCard
    outcomes: Sequence[Outcome]
    """One for each part of the picture that was run by itself."""
    pinned: bool
    """The client chose the plan."""
    met: bool | None
    """Whether its deadline was kept; None where it set none."""
    timings_s: Timings
    cache: str = ""
    """Whether what it took was there already, hit or miss; empty: that was no question."""

    @property
    def least(self) -> Outcome:
        """The one whose plan is worth least: what can be said of the whole."""
        return min(self.outcomes, key=lambda outcome: quality_of(self.card, outcome.plan) or 0.0)

    def compute(self) -> dict[str, object]:
        """What was spent, all parts together."""
        plan, results = self.least.plan, [outcome.result for outcome in self.outcomes]
        return {
            "plan": str(plan),
            "rung": plan.relative_to(self.card.full),
            "quality": quality_of(self.card, plan),
            "tokens": sum(result.tokens for result in results),
            "tokens_full": len(results) * self.card.ladder[-1].tokens,
            "exit_layer": max(result.exit_layer for result in results),
            "gflops": round(sum(result.gflops for result in results), 4),
            "degraded": not self.pinned and plan != self.card.full,
            "chosen": chosen_field(self.card, self.least.result),
        }

    def answered(self, content: Mapping[str, object] | bytes) -> "CacheableResponse":
        """The response with these fields, or with this image/png."""
        plan, pictured = self.least.plan, isinstance(content, bytes)
        quality, brief = quality_of(self.card, plan), False
        told = {"plan": str(plan), "quality": quality, "pictured": pictured}
        if isinstance(content, bytes):
            part = content
        else:
            part = orjson.dumps({"model": self.card.name, **content})
            brief = content.get("explain", "nobody asked") is None
        entry = CacheEntry(quality or 0.0, told, (part,), brief)
        return CacheableResponse(entry, ReplyHeaders(self.id, self.met, self.timings_s), self.cache)


@dataclass(frozen=True, slots=True)
class ReplyHeaders:
    """What a response says of the one request that it is for."""

    id: str
    met: bool | None
    """Whether its deadline was kept; None where it set none."""
    timings_s: Timings

    @property
    def timings_ms(self) -> dict[str, float]:
        return {name: round(seconds * 1e3, 3) for name, seconds in self.timings_s.items()}


class CacheableResponse(Response):
    """A response, and what of it may be said to others who ask the same."""

    def __init__(self, entry: CacheEntry, reply: ReplyHeaders, cache: str = "") -> None:
        """cache: whether what it took was there already; empty: that was no question."""
        self.entry, self.reply = entry, reply
        (part,), timings_ms = entry.parts, reply.timings_ms
        headers = _headers(entry, reply, timings_ms, cache)
        if entry.fields["pictured"]:
            super().__init__(part, headers=headers, media_type="image/png")
            return
        # The rest is as it was rendered, once.
        told = orjson.dumps(reply.id), part[1:-1], orjson.dumps(timings_ms)
        super().__init__(
            b'{"id":%b,%b,"timings_ms":%b}' % told, headers=headers, media_type="application/json"
        )


def _headers(
    entry: CacheEntry, reply: ReplyHeaders, timings_ms: Mapping[str, float], cache: str
) -> dict[str, str]:
    """As the contract names them."""
    found = {
        "x-request-id": reply.id,
        "x-foveate-plan": str(entry.fields["plan"]),
        "server-timing": ", ".join([f"{name};dur={ms}" for name, ms in timings_ms.items()]),
    }
    if entry.fields["quality"] is not None:
        found["x-foveate-quality"] = f"{entry.quality:.4f}"
    if reply.met is not None:
        found["x-slo-met"] = str(reply.met).lower()
    if cache:
        found["x-cache"] = cache
    return found


def chosen_field(card: ModelCard, result: Result) -> str | None:
    """The rung that the content asked for, by its name in the ladder; None where it had no say."""
    return None if result.chosen is None else result.chosen.relative_to(card.full)
