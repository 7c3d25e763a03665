"""The OpenAPI entry of /classify, which is served beside the framework's own routes."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from foveate.gateway.wire import Classification, Problem

_REF = "#/components/schemas/{model}"
_PICTURE = {"type": "string", "format": "binary"}
_BODY = {
    "image/*": {"schema": _PICTURE},
    "multipart/form-data": {
        "schema": {"type": "object", "required": ["file"], "properties": {"file": _PICTURE}}
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string", "format": "byte"}},
        }
    },
}
_PARAMETERS = [
    {"name": name, "in": place, "required": False, "schema": {"type": kind}, "description": what}
    for name, place, kind, what in (
        ("model", "query", "string", "which model; the first one served unless told"),
        ("top_k", "query", "integer", "how many classes to name, 5 unless told"),
        ("explain", "query", "boolean", "say which patches were kept, merged or dropped; one more forward"),
        ("x-slo-ms", "header", "number", "answer within this many milliseconds, as well as that allows"),
        ("x-request-timeout-seconds", "header", "number", "the same, in seconds"),
        ("x-min-quality", "header", "number", "least share of full accuracy, 0 to 1"),
        (
            "x-priority",
            "header",
            "integer",
            "head starts in the queue, -9 to 9, cut to what the server allows",
        ),
        ("x-slo-class", "header", "string", "a promise the server has a name for; other headers go first"),
        ("x-plan", "header", "string", "run under this plan, as in evit:0.5"),
        ("x-request-id", "header", "string", "echoed; made up unless sent"),
    )
]
_STATUSES = {
    400: "Bad request",
    404: "Unknown model",
    408: "Body too slow",
    413: "Body or picture too large",
    415: "Unsupported media type",
    422: "Media cannot be decoded",
    429: "Overloaded",
    500: "Inference failed",
    503: "Draining",
    504: "Deadline exceeded",
}


def describe_classify(app: FastAPI) -> None:
    """Put POST /classify into the document that /openapi.json shows."""
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        document = framework()
        if "/classify" not in document["paths"]:
            _, models = models_json_schema(
                [(Classification, "serialization"), (Problem, "serialization")], ref_template=_REF
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
            document["paths"] = {"/classify": {"post": _operation()}, **document["paths"]}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _operation() -> dict[str, Any]:
    def answer(description: str, kind: str, model: str) -> dict[str, Any]:
        schema = {"$ref": _REF.format(model=model)}
        return {"description": description, "content": {kind: {"schema": schema}}}

    problems = {str(s): answer(d, "application/problem+json", "Problem") for s, d in _STATUSES.items()}
    return {
        "summary": "Name what a picture shows",
        "operationId": "classify",
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": _BODY},
        "responses": {"200": answer("The answer", "application/json", "Classification"), **problems},
    }
