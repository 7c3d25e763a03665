"""The OpenAPI entries of the task routes, which are ASGI applications that the framework cannot describe."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from foveate.core.model import CHAT_ROUTE
from foveate.core.point_prompts import MAX_POINTS
from foveate.gateway.schemas.chat import CHAT_BODY, ChatCompletion, ChatCompletionChunk, OpenAiError
from foveate.gateway.schemas.embedding import ImageEmbedding
from foveate.gateway.schemas.image import Classification, Problem, Segmentation
from foveate.gateway.schemas.video import ClipClassification, ClipSegmentation

_REF = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}
OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "type": "string",
        "description": "name of the model; default: the first model served for this task and type of media",
    },
    "plan": {"type": "string", "description": "plan to run under, as the header x-plan names it"},
    "top_k": {
        "type": "integer",
        "minimum": 1,
        "description": "number of classes in the answer, at most; default 5",
    },
    "explain": {
        "type": "boolean",
        "description": "report which patches were kept, merged or dropped; costs one more forward",
    },
    "labels": {
        "type": "string",
        "description": "the classes, for a model with a text tower (CLIP, SigLIP): up to 1000 labels"
        " separated by commas; \\, is a comma in a label. Given several times, each value is one label.",
    },
    "template": {
        "type": "string",
        "maxLength": 200,
        "description": "text of a class, with {} in the place of its label; default: as in the model's card",
    },
    "normalize": {
        "type": "boolean",
        "description": "scale the embedding to length 1 (L2); default false",
    },
    "overlay": {"type": "boolean", "description": "also return the image with the mask's colours on it"},
    "points": {
        "type": "string",
        "description": "segment one object: 1 to 32 points as x,y or x,y,label in pixels of the upright"
        " image, separated by ; . Label 1, or none, is a point on the object, 0 a point off it. The mask is 1"
        " on the object. Of a large image, only the tile around the first point on the object is used."
        " Further points on the same image are cheap.",
    },
}
"""The schema of each option, as text in the query or in a form."""
_POINT_LISTS: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_POINTS,
    "items": {"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": "number", "minimum": 0}},
}
_LISTS = {"points": _POINT_LISTS, "labels": {"type": "array", "items": {"type": "string"}}}
"""The options that may be lists in JSON."""
CLASSIFY_OPTIONS = ("model", "plan", "top_k", "explain", "labels", "template")
SEGMENT_OPTIONS = ("model", "plan", "overlay", "points")
EMBED_OPTIONS = ("model", "plan", "normalize")
_BODY_TEXT = (
    "Options may stand in the query, in fields of the form, or in keys of the JSON"
    " object. An option with two different values, or with an unknown name, is a 400. With the header"
    " content-encoding, the body is compressed with gzip or deflate."
)


def _body(options: Sequence[str], clips: bool) -> dict[str, Any]:
    """The OpenAPI entry of the body of a route with these options. clips: the route takes clips too."""
    media = "image or clip" if clips else "image"
    fields = {name: OPTIONS[name] for name in options}
    members = {name: {"anyOf": [*_json_types(name), {"type": "null"}]} for name in options}
    data = {"type": "string", "format": "byte", "description": f"the {media}, in base64"}
    url = {
        "type": "string",
        "pattern": "^(https?://|data:)",
        "description": f"the URL of the {media}, in place of data: http or https, if the server fetches from"
        " its host, or data:",
    }
    return {
        "required": True,
        "description": f"{'An image or a clip' if clips else 'An image'}. {_BODY_TEXT}",
        "content": {
            "image/*": {"schema": _BINARY},
            **({"video/*": {"schema": _BINARY}} if clips else {}),
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {"schema": _closed_object({"file": _BINARY, **fields}, "file")},
            "application/json": {
                "schema": _closed_object({"data": data, "url": url, **members}, "data", "url")
            },
        },
    }


def _json_types(name: str) -> list[dict[str, Any]]:
    """The JSON types of an option; points may be lists too, as in [[x, y], [x, y, 0]], and labels."""
    own = {key: value for key, value in OPTIONS[name].items() if key != "description"}
    return [_LISTS[name], own] if name in _LISTS else [own]


def _closed_object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """An object without other properties. required: one of these properties must be there, and no two."""
    one_of = [{"required": [name]} for name in required]
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **(one_of[0] if len(one_of) == 1 else {"oneOf": one_of}),
    }


_BOUNDS: dict[str, dict[str, float]] = {
    "x-slo-ms": {"exclusiveMinimum": 0, "maximum": 3_600_000},
    "x-request-timeout-seconds": {"exclusiveMinimum": 0, "maximum": 3_600},
    "x-min-quality": {"minimum": 0, "maximum": 1},
    "x-min-quality-worst": {"minimum": 0, "maximum": 1},
    "x-ttft-ms": {"exclusiveMinimum": 0, "maximum": 3_600_000},
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
RESPONSE_MODELS = (
    Classification, ClipClassification, Segmentation, ClipSegmentation, ImageEmbedding, Problem,
    ChatCompletion, ChatCompletionChunk, OpenAiError,
)  # fmt: skip
_STATUSES = {
    400: "Bad request",
    404: "Unknown model",
    408: "Body too slow",
    413: "Body, image or clip too large",
    415: "Unsupported media type or content encoding",
    422: "Media cannot be decoded",
    429: "Overloaded",
    500: "Inference failed",
    503: "Draining, or the device does not respond",
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
                "/embed": {"post": _embed()},
                CHAT_ROUTE: {"post": _chat()},
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
    return _operation("classify", "Classify an image or a clip", CLASSIFY_OPTIONS, answer)


def _segment() -> dict[str, Any]:
    answer = {**_json("Segmentation", "ClipSegmentation"), "image/png": {"schema": _BINARY}}
    summary = "Segment an image, or sampled frames of a clip"
    return _operation("segment", summary, SEGMENT_OPTIONS, answer)


def _embed() -> dict[str, Any]:
    answer = _json("ImageEmbedding")
    return _operation("embed", "Embed an image", EMBED_OPTIONS, answer, clips=False)


def _chat() -> dict[str, Any]:
    """As OpenAI's API has it. Errors are its error objects."""
    headers = _parameters(
        ("x-ttft-ms", "header", "number", "deadline of the first token, in milliseconds from the arrival"),
        (
            "x-min-quality-worst",
            "header",
            "number",
            "lowest acceptable share of full accuracy in every kind of question, 0 to 1",
        ),
    )
    problems = {
        str(status): {"description": text, "content": _json("OpenAiError")}
        for status, text in _STATUSES.items()
    }
    answers = {
        **_json("ChatCompletion"),
        "text/event-stream": {"schema": {"$ref": _REF.format(model="ChatCompletionChunk")}},
    }
    body = {"required": True, "content": {"application/json": {"schema": CHAT_BODY}}}
    return {
        "summary": "Answer a chat about pictures",
        "operationId": "chat",
        "parameters": [*_COMMON, *headers],
        "requestBody": body,
        "responses": {"200": {"description": "The answer", "content": answers}, **problems},
    }


def _json(*models: str) -> dict[str, Any]:
    """JSON content of one of these response models."""
    schemas = [{"$ref": _REF.format(model=model)} for model in models]
    return {"application/json": {"schema": {"anyOf": schemas}}}


def _query_parameters(options: Sequence[str]) -> list[dict[str, Any]]:
    """The OpenAPI parameters of these options."""
    schemas = {name: dict(OPTIONS[name]) for name in options}
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description"),
            "schema": schema,
        }
        for name, schema in schemas.items()
    ]


def _operation(
    name: str, summary: str, options: Sequence[str], answer: dict[str, Any], clips: bool = True
) -> dict[str, Any]:
    problems = {str(status): problem_response(text) for status, text in _STATUSES.items()}
    problems["415"]["headers"] = {
        "accept-encoding": {
            "description": "the encodings that the server supports, if that of the request is not",
            "schema": {"type": "string"},
        }
    }
    return {
        "summary": summary,
        "operationId": name,
        "parameters": [*_query_parameters(options), *_COMMON],
        "requestBody": _body(options, clips),
        "responses": {"200": {"description": "The answer", "content": answer}, **problems},
    }
