"""What an answer's body says, for Foveate and, through a function of the same kind, for other servers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from foveate.core.errors import SetupError


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and what the server says about it, where it says anything."""

    label: str
    rung: str = ""
    quality: float | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


Parser = Callable[[bytes], Answer]
"""From a body with status 200; raises one of UNREADABLE where it is no answer."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)


def foveate(body: bytes) -> Answer:
    """The answer of POST /classify. Other servers get by with {"predictions": [{"label": ...}]}."""
    said: dict[str, Any] = orjson.loads(body)
    spent = said.get("compute", {})
    return Answer(
        str(said["predictions"][0]["label"]),
        spent.get("rung", ""),
        spent.get("quality"),
        said.get("timings_ms", {}),
    )


def parser(name: str) -> Parser:
    """The function that `package.module:function` names. Raises SetupError."""
    module, _, function = name.partition(":")
    try:
        return cast("Parser", getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise SetupError(f"there is no parser {name!r}; name one as package.module:function") from error
