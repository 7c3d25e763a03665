"""Parse the body of an answer, of Foveate or, with another parser function, of other servers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from foveate.core.errors import SetupError


@dataclass(frozen=True, slots=True)
class StreamedText:
    """A streamed answer of a chat. None stands for what the server does not report."""

    ends: tuple[int, ...]
    """For each piece of text, and for the end of the answer, the bytes of the body up to its end."""
    tokens: int
    """Tokens of the answer, the end mark included; the pieces of text if there is no usage."""
    finish: str
    """Why it ended: `stop` or `length`."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    visual_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The content of one answer. All but the label are optional: other servers do not report them."""

    label: str
    rung: str = ""
    quality: float | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    stream: StreamedText | None = None
    """Of a streamed chat, whose text is the label."""


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
