"""The answer's shape on the wire, and its headers."""

import base64

import numpy as np
from pydantic import BaseModel, Field

from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan
from foveate.gateway.media.masks import RenderedMask
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest


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


def classification(served: ServedRequest, top_k: int, explain: bool) -> CacheableResponse:
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


def segmentation(served: ServedRequest, drawn: RenderedMask) -> CacheableResponse:
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


def segment_fields(card: ModelCard, drawn: RenderedMask) -> list[dict[str, object]]:
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
        "rung": rung.plan.relative_to(full),
        "quality": rung.quality,
        "gflops": round(rung.gflops, 4),
        "tokens": rung.tokens,
        "latency_ms": rung.latency_s and {str(size): round(1e3 * s, 3) for size, s in rung.latency_s.items()},
    }
