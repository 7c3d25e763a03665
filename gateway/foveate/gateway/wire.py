"""The answer's shape on the wire, and its headers."""

import numpy as np
import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response

from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Explanation, Outcome, Result
from foveate.core.plan import Plan
from foveate.core.request import Request
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


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None


def classification(
    card: ModelCard,
    request: Request,
    outcome: Outcome,
    top_k: int,
    pinned: bool,
    met: bool | None,
    timings_s: dict[str, float],
) -> Response:
    """The response to a classified picture; timings in seconds, in the order they happened.

    `pinned`: the client chose the plan; `met`: whether its deadline was kept, None where it set none.
    """
    result, plan = outcome.result, outcome.plan
    quality = quality_of(card, plan)
    timings_ms = {name: round(seconds * 1e3, 3) for name, seconds in timings_s.items()}
    body: dict[str, object] = {
        "id": request.id,
        "model": card.name,
        "predictions": prediction_fields(card, result, top_k),
        "compute": {
            "plan": str(plan),
            "rung": plan.beside(card.full),
            "quality": quality,
            "tokens": result.tokens,
            "tokens_full": card.ladder[-1].tokens,
            "exit_layer": result.exit_layer,
            "gflops": round(result.gflops, 4),
            "degraded": not pinned and plan != card.full,
            "chosen": chosen_field(card, result),
        },
        "timings_ms": timings_ms,
    }
    if request.explain:
        body["explain"] = None if result.explanation is None else explain_fields(result.explanation)
    headers = {
        "x-request-id": request.id,
        "x-foveate-plan": str(plan),
        "server-timing": ", ".join(f"{name};dur={ms}" for name, ms in timings_ms.items()),
    }
    if quality is not None:
        headers["x-foveate-quality"] = f"{quality:.4f}"
    if met is not None:
        headers["x-slo-met"] = str(met).lower()
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


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
        "task": "classify",
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
