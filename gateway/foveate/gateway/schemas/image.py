"""JSON bodies of answers to images, and of the model list."""

import base64

import numpy as np
from pydantic import BaseModel, Field

from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan
from foveate.gateway.media.masks import RenderedMask
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest


class Prediction(BaseModel):
    """One class and its probability."""

    label: str
    index: int = Field(description="index of the class in the model's labels")
    score: float = Field(description="probability of the class, 0 to 1")


class Compute(BaseModel):
    """The plan of the answer and its cost. With several tiles, the cost of all of them."""

    plan: str = Field(description="the plan under which the model ran")
    rung: str = Field(description="the plan relative to full, as in the ladder")
    quality: float | None = Field(description="measured quality of the plan, 0 to 1; null: never measured")
    tokens: int = Field(description="tokens left after the last block")
    tokens_full: int = Field(description="tokens left after the last block under the full plan")
    exit_layer: int = Field(description="blocks that were run")
    gflops: float = Field(description="billions of multiply-adds")
    degraded: bool = Field(description="true where the server chose a plan below full")
    chosen: str | None = Field(description="the rung chosen by the image's content, under a content plan")


class Stage(BaseModel):
    """The image's tokens after a block that reduced them."""

    block: int = Field(description="the block that reduced the tokens, counted from 1")
    tokens: int = Field(description="tokens after the block, class and register tokens included")
    patches: list[int] = Field(
        description="for each patch, row by row: -1 if it was dropped, else the smallest patch number, "
        "counted from 0, among the patches that share its token. A patch alone in its group was kept; a "
        "group of several patches was merged."
    )


class Explained(BaseModel):
    """Which patches were kept, merged or dropped, and after which block the image exited."""

    grid: tuple[int, int] = Field(description="rows and columns of patches")
    exit_layer: int = Field(description="blocks that were run on the image")
    stages: list[Stage] = Field(
        description="one for each block that reduced the tokens; empty: all were kept"
    )


class Classification(BaseModel):
    """The answer of POST /classify to an image."""

    id: str
    model: str
    predictions: list[Prediction]
    compute: Compute
    timings_ms: dict[str, float]
    explain: Explained | None = Field(
        None, description="only with ?explain=true; null where the model cannot explain its answer"
    )


class Segment(BaseModel):
    """One class in the mask, or the object at the clicked points."""

    label: str | None = Field(description="null for a clicked object of no class that the model knows")
    index: int | None = Field(description="index of the class in the model's labels")
    value: int = Field(description="value of its pixels in the mask; 0 is the background")
    area: int = Field(description="area in pixels of the image")
    share: float = Field(description="share of the image's pixels, 0 to 1")
    box: tuple[int, int, int, int] = Field(
        description="left, top, right, bottom in pixels; right and bottom are exclusive"
    )


class Segmentation(BaseModel):
    """The answer of POST /segment to an image."""

    id: str
    model: str
    width: int
    height: int
    segments: list[Segment] = Field(description="the largest first, without the background")
    mask: str = Field(description="indexed PNG of the image's size, as a data URL")
    overlay: str | None = Field(None, description="JPEG, as a data URL; only with ?overlay=true")
    windows: int = Field(description="tiles of the image that were run on their own")
    compute: Compute
    timings_ms: dict[str, float]


class ModelEntry(BaseModel):
    """One served model."""

    name: str
    description: str
    task: str = Field(description="classify, segment or embed; clicks or text: it works for another model")
    frames: int = Field(description="frames of one forward; 0: the model takes images")
    full: str = Field(description="the full plan, which spends all compute")
    parameters: int = Field(description="number of parameters")
    classes: int = Field(description="number of classes")
    zero_shot: bool = Field(description="POST /classify takes the classes as ?labels=")
    licence: str
    source: str


class ModelList(BaseModel):
    """The answer of GET /models."""

    models: list[ModelEntry]


class RungEntry(BaseModel):
    """One plan of a ladder."""

    plan: str
    rung: str = Field(description="the plan relative to full")
    quality: float | None = Field(description="measured quality of the plan, 0 to 1; null: never measured")
    gflops: float = Field(description="billions of multiply-adds")
    tokens: int = Field(description="tokens left after the last block")
    latency_ms: dict[str, float] | None = Field(
        description="measured milliseconds of a batch, by its size; null: never measured"
    )


class ModelLadder(BaseModel):
    """The answer of GET /models/{name}/ladder."""

    model: str
    ladder: list[RungEntry] = Field(description="the cheapest plan first")


class ProbeAnswer(BaseModel):
    """The answer of GET /livez and GET /readyz."""

    status: str = Field(description="alive, ready, starting, draining, hanging or failed")
    reason: str | None = Field(None, description="what hangs or failed, with model and plan")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="URI of the kind of problem")
    title: str
    status: int = Field(description="HTTP status code")
    detail: str = Field(description="one sentence: the field, its value and the fix")
    instance: str | None = None


def classification(served: ServedRequest, top_k: int, explain: bool) -> CacheableResponse:
    """The response to an image that was classified."""
    (outcome,) = served.outcomes
    fields: dict[str, object] = {
        "predictions": prediction_fields(served.card, outcome.result, top_k),
        "compute": served.compute(),
    }
    if explain:
        explanation = outcome.result.explanation
        fields["explain"] = None if explanation is None else explain_fields(explanation)
    return served.to_response(fields)


def segmentation(served: ServedRequest, rendered: RenderedMask) -> CacheableResponse:
    """The response to an image that was segmented, as JSON. Images in it are data URLs."""
    width, height = rendered.size
    fields: dict[str, object] = {
        "width": width,
        "height": height,
        "segments": segment_fields(served.card, rendered),
        "mask": data_url("image/png", rendered.mask),
    }
    if rendered.overlay is not None:
        fields["overlay"] = data_url("image/jpeg", rendered.overlay)
    return served.to_response(fields | {"windows": len(served.outcomes), "compute": served.compute()})


def segment_fields(card: ModelCard, rendered: RenderedMask) -> list[dict[str, object]]:
    """The classes in a mask as the JSON of `Segment`, the largest first."""
    width, height = rendered.size
    return [
        {
            "label": None if area.label_index is None else card.labels[area.label_index],
            "index": area.label_index,
            "value": area.value,
            "area": area.pixels,
            "share": round(area.pixels / (width * height), 6),
            "box": area.box,
        }
        for area in rendered.areas
    ]


def data_url(kind: str, data: bytes) -> str:
    """Image bytes as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def prediction_fields(card: ModelCard, result: Result, top_k: int) -> list[dict[str, object]]:
    """The `top_k` most probable classes, the best first."""
    order = np.argsort(-result.scores, kind="stable")[:top_k].tolist()
    return [{"label": card.labels[i], "index": i, "score": round(float(result.scores[i]), 6)} for i in order]


def explain_fields(explanation: Explanation) -> dict[str, object]:
    """An explanation as the JSON of `Explained`."""
    return {
        "grid": explanation.grid,
        "exit_layer": explanation.exit_layer,
        "stages": [
            {"block": stage.block, "tokens": stage.tokens, "patches": stage.groups}
            for stage in explanation.stages
        ],
    }


def card_fields(card: ModelCard) -> dict[str, object]:
    """A model as JSON of `GET /models`."""
    return {
        "name": card.name,
        "description": card.description,
        "task": card.task,
        "frames": card.frames,
        "full": str(card.full),
        "parameters": card.parameters,
        "classes": len(card.labels),
        "zero_shot": card.zero_shot is not None,
        "licence": card.licence,
        "source": card.source,
    }


def rung_fields(rung: Rung, full: Plan) -> dict[str, object]:
    """A rung as JSON of `GET /models/{name}/ladder`."""
    return {
        "plan": str(rung.plan),
        "rung": rung.plan.relative_to(full),
        "quality": rung.quality,
        "gflops": round(rung.gflops, 4),
        "tokens": rung.tokens,
        "latency_ms": rung.latency_s and {str(size): round(1e3 * s, 3) for size, s in rung.latency_s.items()},
    }
