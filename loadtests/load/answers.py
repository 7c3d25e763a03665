"""Parse the body of an answer, of Foveate or, with another parser function, of other servers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from foveate.core.errors import SetupError


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The content of one answer. All but the label are optional: other servers do not report them."""

    label: str
    rung: str = ""
    quality: float | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


Parser = Callable[[bytes], ParsedAnswer]
"""Parses the body of an answer with status 200. Raises one of UNREADABLE if it is not an answer."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)


def foveate(body: bytes) -> ParsedAnswer:
    """Parse an answer of POST /classify. Other servers need only {"predictions": [{"label": ...}]}."""
    answer: dict[str, Any] = orjson.loads(body)
    compute = answer.get("compute", {})
    return ParsedAnswer(
        str(answer["predictions"][0]["label"]),
        compute.get("rung", ""),
        compute.get("quality"),
        answer.get("timings_ms", {}),
    )


def parser(name: str) -> Parser:
    """Import the parser named `package.module:function`. Raises SetupError."""
    module, _, function = name.partition(":")
    try:
        return cast("Parser", getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise SetupError(f"there is no parser {name!r}; give --parser as package.module:function") from error
