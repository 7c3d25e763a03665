"""The OpenAPI entries of the tasks, which are served beside the framework's own routes."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from foveate.core.clicks import MAX_POINTS
from foveate.gateway.schemas.image import Classification, Problem, Segmentation
from foveate.gateway.schemas.video import ClipClassification, ClipSegmentation

_REF = "#/components/schemas/{model}"
_PICTURE = {"type": "string", "format": "binary"}
_BODY = {
    "image/*": {"schema": _PICTURE},
    "video/*": {"schema": _PICTURE},
    "multipart/form-data": {
        "schema": {"type": "object", "required": ["file"], "properties": {"file": _PICTURE}}
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["data"],
            "properties": {
                "data": {"type": "string", "format": "byte"},
                "points": {
                    "type": "array",
                    "maxItems": MAX_POINTS,
                    "items": {"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": "number"}},
                    "description": "of /segment: as the query parameter, [[x, y], [x, y, 0]]",
                },
            },
        }
    },
}


def _parameters(*given: tuple[str, str, str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": place, "required": False, "schema": {"type": kind}, "description": what}
        for name, place, kind, what in given
    ]


_COMMON = _parameters(
    ("model", "query", "string", "which model; unless told the first one served for this task and medium"),
    ("x-slo-ms", "header", "number", "answer within this many milliseconds, as well as that allows"),
    ("x-request-timeout-seconds", "header", "number", "the same, in seconds"),
    ("x-min-quality", "header", "number", "least share of full accuracy, 0 to 1"),
    ("x-priority", "header", "integer", "head starts in the queue, -9 to 9, cut to what the server allows"),
    ("x-slo-class", "header", "string", "a promise the server has a name for; other headers go first"),
    ("x-plan", "header", "string", "run under this plan, as in evit:0.5"),
    ("x-request-id", "header", "string", "echoed; made up unless sent"),
)
_CLASSIFY = _parameters(
    ("top_k", "query", "integer", "how many classes to name, 5 unless told"),
    ("explain", "query", "boolean", "say which patches were kept, merged or dropped; one more forward"),
)
_SEGMENT = _parameters(
    ("overlay", "query", "boolean", "send the picture with the mask's colours on it, too"),
    (
        "points",
        "query",
        "string",
        "outline one object alone: 1 to 32 clicks as x,y or x,y,label in pixels of the upright picture, with "
        "; between them, label 1 or none on the object and 0 off it. The mask is 1 there. Of a large picture "
        "the window around the first click on the object is looked at. Further clicks on it are cheap.",
    ),
)
MODELS = (Classification, ClipClassification, Segmentation, ClipSegmentation, Problem)
_STATUSES = {
    400: "Bad request",
    404: "Unknown model",
    408: "Body too slow",
    413: "Body, picture or clip too large",
    415: "Unsupported media type",
    422: "Media cannot be decoded",
    429: "Overloaded",
    500: "Inference failed",
    503: "Draining",
    504: "Deadline exceeded",
}


def describe_tasks(app: FastAPI) -> None:
    """Put the tasks into the document that /openapi.json shows."""
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        document = framework()
        if "/classify" not in document["paths"]:
            _, models = models_json_schema(
                [(model, "serialization") for model in MODELS],
                ref_template=_REF,
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
            ours = {
                "/classify": {"post": _classify()},
                "/segment": {"post": _segment()},
            }
            document["paths"] = {**ours, **document["paths"]}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _classify() -> dict[str, Any]:
    answer = _json("Classification", "ClipClassification")
    return _operation("classify", "Name what a picture shows, or what happens in a clip", _CLASSIFY, answer)


def _segment() -> dict[str, Any]:
    answer = {**_json("Segmentation", "ClipSegmentation"), "image/png": {"schema": _PICTURE}}
    summary = "Name what each pixel shows of a picture, or of some of a clip's frames"
    return _operation("segment", summary, _SEGMENT, answer)


def _json(of_picture: str, of_clip: str) -> dict[str, Any]:
    answers = [{"$ref": _REF.format(model=model)} for model in (of_picture, of_clip)]
    return {"application/json": {"schema": {"anyOf": answers}}}


def _operation(
    name: str, summary: str, parameters: list[dict[str, Any]], answer: dict[str, Any]
) -> dict[str, Any]:
    told = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    problems = {str(status): {"description": what, "content": told} for status, what in _STATUSES.items()}
    return {
        "summary": summary,
        "operationId": name,
        "parameters": [*_COMMON, *parameters],
        "requestBody": {"required": True, "content": _BODY},
        "responses": {"200": {"description": "The answer", "content": answer}, **problems},
    }
