"""The answer's shape on the wire, and its headers."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response

from foveate.cache.entry import Entry
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Explanation, Outcome, Result
from foveate.core.plan import Plan
from foveate.gateway.masks import Drawn
from foveate.gateway.objective import quality_of


class Prediction(BaseModel):
    """One class, with the probability the model gives it."""

    label: str
    index: int
    score: float


class Compute(BaseModel):
    """What was spent on the answer."""

    plan: str
    rung: str
    quality: float | None
    tokens: int
    tokens_full: int
    exit_layer: int
    gflops: float
    degraded: bool
    chosen: str | None = Field(description="the rung the picture's content asked for, under a content plan")


class Stage(BaseModel):
    """The picture's tokens after a block that changed them."""

    block: int = Field(description="the block that changed them, counted from 1")
    tokens: int = Field(description="tokens that left it, class and register tokens included")
    patches: list[int] = Field(
        description="for each patch, row by row and counted from 0: -1 where it has been dropped, else the "
        "smallest patch among those that share its token. A patch alone in its group was kept; the others "
        "of a group were merged."
    )


class Explained(BaseModel):
    """Which patches were kept, merged or dropped on the way, and where the picture left."""

    grid: tuple[int, int] = Field(description="rows and columns of patches")
    exit_layer: int = Field(description="blocks the picture went through")
    stages: list[Stage] = Field(description="one for each block that changed the tokens; none: all were kept")


class Classification(BaseModel):
    """The answer of POST /classify."""

    id: str
    model: str
    predictions: list[Prediction]
    compute: Compute
    timings_ms: dict[str, float]
    explain: Explained | None = Field(
        None, description="only with ?explain=true; null where the model cannot tell what it looked at"
    )


class Segment(BaseModel):
    """One class that the picture shows."""

    label: str | None = Field(description="null for a clicked object that is of no class the model knows")
    index: int | None
    value: int = Field(description="of its pixels in the mask; 0 is the background")
    area: int = Field(description="in pixels of the picture")
    share: float = Field(description="of the picture's pixels")
    box: tuple[int, int, int, int] = Field(description="left, top, right, bottom; the last two exclusive")


class Segmentation(BaseModel):
    """The answer of POST /segment."""

    id: str
    model: str
    width: int
    height: int
    segments: list[Segment] = Field(description="the largest first, the background left out")
    mask: str = Field(description="indexed PNG of the picture's size, as a data URL")
    overlay: str | None = Field(None, description="JPEG, as a data URL; only with ?overlay=true")
    windows: int = Field(description="parts of the picture that were looked at by themselves")
    compute: Compute
    timings_ms: dict[str, float]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None


Timings = Mapping[str, float]
"""Seconds, in the order in which they passed."""


@dataclass(frozen=True, slots=True)
class Served:
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
            "rung": plan.beside(self.card.full),
            "quality": quality_of(self.card, plan),
            "tokens": sum(result.tokens for result in results),
            "tokens_full": len(results) * self.card.ladder[-1].tokens,
            "exit_layer": max(result.exit_layer for result in results),
            "gflops": round(sum(result.gflops for result in results), 4),
            "degraded": not self.pinned and plan != self.card.full,
            "chosen": chosen_field(self.card, self.least.result),
        }

    def answered(self, content: Mapping[str, object] | bytes) -> "Answered":
        """The response with these fields, or with this image/png."""
        plan, pictured = self.least.plan, isinstance(content, bytes)
        quality, brief = quality_of(self.card, plan), False
        told = {"plan": str(plan), "quality": quality, "pictured": pictured}
        if isinstance(content, bytes):
            part = content
        else:
            part = orjson.dumps({"model": self.card.name, **content})
            brief = content.get("explain", "nobody asked") is None
        entry = Entry(quality or 0.0, told, (part,), brief)
        return Answered(entry, Reply(self.id, self.met, self.timings_s), self.cache)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a response says of the one request that it is for."""

    id: str
    met: bool | None
    """Whether its deadline was kept; None where it set none."""
    timings_s: Timings

    @property
    def timings_ms(self) -> dict[str, float]:
        return {name: round(seconds * 1e3, 3) for name, seconds in self.timings_s.items()}


class Answered(Response):
    """A response, and what of it may be said to others who ask the same."""

    def __init__(self, entry: Entry, reply: Reply, cache: str = "") -> None:
        """cache: whether what it took was there already; empty: that was no question."""
        self.entry = entry
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


def _headers(entry: Entry, reply: Reply, timings_ms: Mapping[str, float], cache: str) -> dict[str, str]:
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


def classification(served: Served, top_k: int, explain: bool) -> Answered:
    """The response to a classified picture."""
    (outcome,) = served.outcomes
    fields: dict[str, object] = {
        "predictions": prediction_fields(served.card, outcome.result, top_k),
        "compute": served.compute(),
    }
    if explain:
        explanation = outcome.result.explanation
        fields["explain"] = None if explanation is None else explain_fields(explanation)
    return served.answered(fields)


def segmentation(served: Served, drawn: Drawn) -> Answered:
    """The response to a picture whose pixels were named, as JSON: pictures in it are data URLs."""
    width, height = drawn.size
    fields: dict[str, object] = {
        "width": width,
        "height": height,
        "segments": segment_fields(served.card, drawn),
        "mask": data_url("image/png", drawn.mask),
    }
    if drawn.overlay is not None:
        fields["overlay"] = data_url("image/jpeg", drawn.overlay)
    return served.answered(fields | {"windows": len(served.outcomes), "compute": served.compute()})


def segment_fields(card: ModelCard, drawn: Drawn) -> list[dict[str, object]]:
    """What a mask shows, the largest first."""
    width, height = drawn.size
    return [
        {
            "label": None if area.shows is None else card.labels[area.shows],
            "index": area.shows,
            "value": area.value,
            "area": area.pixels,
            "share": round(area.pixels / (width * height), 6),
            "box": area.box,
        }
        for area in drawn.areas
    ]


def data_url(kind: str, data: bytes) -> str:
    """A picture inside of text."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def prediction_fields(card: ModelCard, result: Result, top_k: int) -> list[dict[str, object]]:
    """The likeliest classes, the best first."""
    order = np.argsort(-result.scores, kind="stable")[:top_k].tolist()
    return [{"label": card.labels[i], "index": i, "score": round(float(result.scores[i]), 6)} for i in order]


def chosen_field(card: ModelCard, result: Result) -> str | None:
    """The rung that the content asked for, by its name in the ladder; None where it had no say."""
    return None if result.chosen is None else result.chosen.beside(card.full)


def explain_fields(explanation: Explanation) -> dict[str, object]:
    """An explanation on the wire: one list a stage, from which kept, merged and dropped can be read."""
    return {
        "grid": explanation.grid,
        "exit_layer": explanation.exit_layer,
        "stages": [
            {"block": stage.block, "tokens": stage.tokens, "patches": stage.into}
            for stage in explanation.stages
        ],
    }


def card_fields(card: ModelCard) -> dict[str, object]:
    """A model as `GET /models` shows it."""
    return {
        "name": card.name,
        "description": card.description,
        "task": card.task,
        "frames": card.frames,
        "full": str(card.full),
        "parameters": card.parameters,
        "classes": len(card.labels),
        "licence": card.licence,
        "source": card.source,
    }


def rung_fields(rung: Rung, full: Plan) -> dict[str, object]:
    """A rung as `GET /models/{name}/ladder` shows it."""
    return {
        "plan": str(rung.plan),
        "rung": rung.plan.beside(full),
        "quality": rung.quality,
        "gflops": round(rung.gflops, 4),
        "tokens": rung.tokens,
        "latency_ms": rung.latency_s and {str(size): round(1e3 * s, 3) for size, s in rung.latency_s.items()},
    }
