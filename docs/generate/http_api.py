"""The HTTP API page: the OpenAPI document of the server, rendered as Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from docs.generate.markdown import code, sentence, table
from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings

APP = "foveate.gateway.app"
"""The module whose `create_app` makes the server; its `openapi()` is the document."""

_INTRO = """\
# HTTP API

After reading this page you can call every route of the server. The document behind this page is served as
`GET /openapi.json` by every server, and is part of this site: [openapi.json](openapi.json).

Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem details, and those of the routes under
`/v1` are OpenAI's error objects; [Chats over HTTP](chat.md) describes these routes. The page
[Deadlines and quality](deadlines.md) explains the headers `x-slo-ms`, `x-min-quality`, `x-priority` and
`x-slo-class`; [Plans and ladders](plans.md) explains `x-plan`. [Tasks](tasks.md#headers) lists the headers
of responses.

"""
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_LOCATIONS = (("path", "Path parameters"), ("query", "Query parameters"), ("header", "Request headers"))
_SCHEMAS = "#/components/schemas/"


def document() -> dict[str, Any]:
    """The OpenAPI document of a server without models."""
    metrics = Metrics()
    app = import_module(APP).create_app(LocalCluster([], metrics), Settings(), metrics)
    openapi: dict[str, Any] = app.openapi()
    return openapi


def as_json(openapi: Mapping[str, Any]) -> str:
    return json.dumps(openapi, indent=2) + "\n"


def page(openapi: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    operations = list(_operations(openapi))
    rows = [
        (f"[{code(f'{method.upper()} {path}')}](#{_anchor(method, path)})", sentence(_summary(operation)))
        for method, path, operation in operations
    ]
    parts = [_INTRO, table(("Route", "What it does"), rows)]
    parts += [part for operation in operations for part in _operation(*operation)]
    schemas = openapi.get("components", {}).get("schemas", {})
    if schemas:
        parts.append("## Schemas\n\n")
        parts += [part for name in sorted(schemas) for part in _schema(name, schemas[name])]
    return "".join(parts)


def _operations(openapi: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, item in openapi["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method, path, item[method]


def _summary(operation: Mapping[str, Any]) -> str:
    """One sentence. The framework derives summaries from function names: a description takes precedence."""
    text = str(operation.get("description") or operation.get("summary", "")).strip()
    return f"{text.splitlines()[0].removesuffix('.')}." if text else ""


def _anchor(method: str, path: str) -> str:
    words = "".join(c if c.isalnum() else "-" for c in path).strip("-").lower()
    return f"{method}-{words}" if words else method


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {method.upper()} {path} {{ #{_anchor(method, path)} }}\n\n{sentence(_summary(operation))}\n\n"
    for location, title in _LOCATIONS:
        rows = [
            (code(field["name"]), _type(field.get("schema", {})), sentence(field.get("description", "")))
            for field in operation.get("parameters", ())
            if field["in"] == location
        ]
        if rows:
            yield f"**{title}**\n\n"
            yield table(("Name", "Type", "Meaning"), rows)
    if "requestBody" in operation:
        yield "**Request body**\n\n"
        if text := operation["requestBody"].get("description"):
            yield f"{sentence(text)}\n\n"
        yield table(("Content type", "Content"), _contents(operation["requestBody"]["content"]))
    yield "**Responses**\n\n"
    yield table(("Status", "Meaning", "Content"), _responses(operation["responses"]))


def _contents(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(code(kind), _type(media.get("schema", {}))) for kind, media in content.items()]


def _responses(responses: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for status, response in sorted(responses.items()):
        contents = _contents(response.get("content", {}))
        cell = "<br>".join(kind if name == "any" else f"{kind}: {name}" for kind, name in contents)
        yield code(status), sentence(response.get("description", "")), cell


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name} {{ #schema-{name.lower()} }}\n\n{sentence(schema.get('description', ''))}\n\n"
    required = schema.get("required", ())
    rows = [
        (
            code(field),
            _type(value) + ("" if field in required else ", optional"),
            sentence(value.get("description", "")),
        )
        for field, value in schema.get("properties", {}).items()
    ]
    if rows:
        yield table(("Field", "Type", "Meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words, with a link where it is a schema of this page."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMAS)
        return f"[{name}](#schema-{name.lower()})"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema and "properties" not in schema:  # else it says which properties are required
            return " or ".join(_type(member) for member in schema[union])
    if "const" in schema or "enum" in schema:
        values: Sequence[Any] = schema.get("enum") or [schema["const"]]
        return " or ".join(code(json.dumps(value)) for value in values)
    kind = schema.get("type", "")
    if kind == "array":
        return _array(schema)
    if kind == "object":
        return _object(schema)
    if schema.get("format") == "binary":
        return "bytes"
    if schema.get("format") == "byte":
        return "base64 text"
    return str(kind) or "any"


def _array(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
    return f"list of {_type(schema.get('items', {}))}"


def _object(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = [
        f"{code(name)} ({_type(value)}{'' if name in required else ', optional'})"
        for name, value in schema.get("properties", {}).items()
    ]
    values = schema.get("additionalProperties")
    if fields:
        return "object with " + ", ".join(fields)
    return f"object of {_type(values)}" if isinstance(values, dict) else "object"
