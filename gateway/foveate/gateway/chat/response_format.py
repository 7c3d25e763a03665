"""The field `response_format`: any text, any JSON object, or JSON that obeys a schema."""

import json
from typing import Any

from foveate.core.errors import BadRequest
from foveate.gateway.chat.fields import (
    plain,
    read_choice,
    read_closed_object,
    read_flag,
    read_object,
    read_text,
)

FIELD = "response_format"
SCHEMA = f"{FIELD}.json_schema.schema"
ANY_OBJECT = '{"type":"object"}'
"""The schema of `json_object`."""


def read_response_format(value: Any) -> str:
    """The JSON schema, as JSON text, that the answer has to obey; empty for any text. Raises BadRequest."""
    if value is None:
        return ""
    known = ("type", "json_schema")
    members = read_closed_object(value, FIELD, known)
    kind = read_choice(members.get("type"), f"{FIELD}.type", ("text", "json_object", "json_schema"))
    if kind != "json_schema":
        if members.get("json_schema") is not None:
            where = f"{FIELD}.json_schema"
            raise BadRequest(f"{where} needs the type json_schema, not {kind}", where)
        return ANY_OBJECT if kind == "json_object" else ""
    return _read_schema(members.get("json_schema"), f"{FIELD}.json_schema")


def _read_schema(value: Any, where: str) -> str:
    members = read_closed_object(value, where, ("name", "description", "schema", "strict"))
    read_text(members.get("name"), f"{where}.name", 64)
    if members.get("description") is not None:
        read_text(members["description"], f"{where}.description")
    if members.get("strict") is not None:
        read_flag(members["strict"], f"{where}.strict")
    read_object(members.get("schema"), SCHEMA)
    try:
        text = json.dumps(plain(members["schema"]), separators=(",", ":"))
    except RecursionError:
        raise BadRequest(f"{SCHEMA} is nested too deeply", SCHEMA) from None
    except BadRequest as error:
        raise BadRequest(f"{SCHEMA}: {error.detail}", SCHEMA) from None
    return text
