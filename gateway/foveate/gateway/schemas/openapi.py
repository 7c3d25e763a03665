"""The OpenAPI entries of the task routes, which are ASGI applications that the framework cannot describe."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from foveate.core.point_prompts import MAX_POINTS
from foveate.gateway.schemas.image import Classification, Problem, Segmentation
from foveate.gateway.schemas.video import ClipClassification, ClipSegmentation

_REF = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}
_BODY = {
    "image/*": {"schema": _BINARY},
    "video/*": {"schema": _BINARY},
    "multipart/form-data": {
        "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}
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
                    "description": "only /segment: the points of the query parameter, as [[x, y], [x, y, 0]]",
                },
            },
        }
    },
}


_BOUNDS: dict[str, dict[str, float]] = {
    "x-slo-ms": {"exclusiveMinimum": 0, "maximum": 3_600_000},
    "x-request-timeout-seconds": {"exclusiveMinimum": 0, "maximum": 3_600},
    "x-min-quality": {"minimum": 0, "maximum": 1},
    "x-priority": {"minimum": -9, "maximum": 9},
    "top_k": {"minimum": 1},
}
"""JSON schema keywords of parameters, by name."""


def _parameters(*rows: tuple[str, str, str, str]) -> list[dict[str, Any]]:
    """OpenAPI parameters from rows of name, location, type and description."""
    return [
        {
            "name": name,
            "in": location,
            "required": False,
            "schema": {"type": kind, **_BOUNDS.get(name, {})},
            "description": text,
        }
        for name, location, kind, text in rows
    ]


_COMMON = _parameters(
    (
        "model",
        "query",
        "string",
        "name of the model; default: the first model served for this task and type of media",
    ),
    ("x-slo-ms", "header", "number", "deadline in milliseconds from the arrival of the request"),
    (
        "x-request-timeout-seconds",
        "header",
        "number",
        "the same deadline in seconds; the shorter of the two applies",
    ),
    ("x-min-quality", "header", "number", "lowest acceptable share of full accuracy, 0 to 1"),
    ("x-priority", "header", "integer", "priority in the queue, -9 to 9; the server may set a lower maximum"),
    ("x-slo-class", "header", "string", "name of an SLO class of the server; the other headers override it"),
    ("x-plan", "header", "string", "plan to run under, as in evit:0.5; default: the server chooses"),
    ("x-request-id", "header", "string", "ID that the answer repeats; default: a new one"),
)
_CLASSIFY = _parameters(
    ("top_k", "query", "integer", "number of classes in the answer; default 5"),
    (
        "explain",
        "query",
        "boolean",
        "report which patches were kept, merged or dropped; costs one more forward",
    ),
)
_SEGMENT = _parameters(
    ("overlay", "query", "boolean", "also return the image with the mask's colours on it"),
    (
        "points",
        "query",
        "string",
        "segment one object: 1 to 32 points as x,y or x,y,label in pixels of the upright image, separated by "
        "; . Label 1, or none, is a point on the object, 0 a point off it. The mask is 1 on the object. Of a "
        "large image, only the tile around the first point on the object is used. Further points on the same "
        "image are cheap.",
    ),
)
RESPONSE_MODELS = (Classification, ClipClassification, Segmentation, ClipSegmentation, Problem)
_STATUSES = {
    400: "Bad request",
    404: "Unknown model",
    408: "Body too slow",
    413: "Body, image or clip too large",
    415: "Unsupported media type",
    422: "Media cannot be decoded",
    429: "Overloaded",
    500: "Inference failed",
    503: "Draining",
    504: "Deadline exceeded",
}


def describe_tasks(app: FastAPI) -> None:
    """Add the task routes to the document at /openapi.json."""
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        document = framework()
        if "/classify" not in document["paths"]:
            _drop_validation_errors(document)
            _, models = models_json_schema(
                [(model, "serialization") for model in RESPONSE_MODELS],
                ref_template=_REF,
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
            task_paths = {
                "/classify": {"post": _classify()},
                "/segment": {"post": _segment()},
            }
            document["paths"] = {**task_paths, **document["paths"]}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_validation_errors(document: dict[str, Any]) -> None:
    """Remove the status 422 that the framework documents: its routes take any text, and never send it."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)


def problem_response(description: str) -> dict[str, Any]:
    """The OpenAPI entry of a response that is a problem document."""
    content = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {"description": description, "content": content}


def _classify() -> dict[str, Any]:
    answer = _json("Classification", "ClipClassification")
    return _operation("classify", "Classify an image or a clip", _CLASSIFY, answer)


def _segment() -> dict[str, Any]:
    answer = {**_json("Segmentation", "ClipSegmentation"), "image/png": {"schema": _BINARY}}
    summary = "Segment an image, or sampled frames of a clip"
    return _operation("segment", summary, _SEGMENT, answer)


def _json(*models: str) -> dict[str, Any]:
    """JSON content of one of these response models."""
    schemas = [{"$ref": _REF.format(model=model)} for model in models]
    return {"application/json": {"schema": {"anyOf": schemas}}}


def _operation(
    name: str, summary: str, parameters: list[dict[str, Any]], answer: dict[str, Any]
) -> dict[str, Any]:
    problems = {str(status): problem_response(text) for status, text in _STATUSES.items()}
    return {
        "summary": summary,
        "operationId": name,
        "parameters": [*_COMMON, *parameters],
        "requestBody": {"required": True, "content": _BODY},
        "responses": {"200": {"description": "The answer", "content": answer}, **problems},
    }
