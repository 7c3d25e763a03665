"""The objective of a chat: from headers, and from the field `foveate` of the body."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from foveate.core.errors import BadPlan, BadRequest
from foveate.core.plan import MAX_TEXT
from foveate.gateway.chat.fields import read_closed_object, read_flag, read_number, read_text, read_whole
from foveate.gateway.objective import MAX_DEADLINE_S, OWN_HEADERS, parse_number

FOVEATE = "foveate"
"""The field of the body, and of answers, that OpenAI's API does not have."""
CHAT_HEADERS = ("x-ttft-ms", "x-min-quality-worst")
"""The headers that only this route reads."""
HEADERS = (*OWN_HEADERS, *CHAT_HEADERS)
FIELD_HEADERS: Mapping[str, str] = {
    "plan": "x-plan",
    "slo_ms": "x-slo-ms",
    "min_quality": "x-min-quality",
    "min_quality_worst": "x-min-quality-worst",
    "ttft_ms": "x-ttft-ms",
    "priority": "x-priority",
    "slo_class": "x-slo-class",
}
"""The header of each field with the same meaning."""
MAX_MS = MAX_DEADLINE_S * 1e3


@dataclass(frozen=True, slots=True)
class RequestedObjective:
    """What `foveate` says."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Its fields as the headers with the same meaning."""
    may_shorten: bool = False
    """The answer may have fewer tokens than asked for, to be in time."""

    def merged(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of the request with those of the body. Raises BadRequest where they disagree."""
        for name, value in self.headers.items():
            if name in headers and not _agree(headers[name], value):
                where = _field_of(name)
                raise BadRequest(f"the header {name} and {where} are different; send one of them", where)
        return {**headers, **self.headers} if self.headers else headers

    @contextmanager
    def naming_fields(self) -> Iterator[None]:
        """Errors about a header name the field that gave its value, if one did."""
        try:
            yield
        except BadRequest as error:
            named = [name for name in self.headers if re.search(rf"{name}(?![\w-])", error.detail)]
            if isinstance(error, BadPlan) and "x-plan" in self.headers:
                named.append("x-plan")
            if error.param is None and named:
                error.param = _field_of(named[0])
            raise


def read_requested(value: Any) -> RequestedObjective:
    """The objective in the body. None: there is none. Raises BadRequest."""
    if value is None:
        return RequestedObjective()
    members = read_closed_object(value, FOVEATE, (*FIELD_HEADERS, "may_shorten"))
    given = {name: member for name, member in members.items() if member is not None}
    may_shorten = read_flag(given.pop("may_shorten", False), f"{FOVEATE}.may_shorten")
    headers = {FIELD_HEADERS[name]: _as_text(name, member) for name, member in given.items()}
    return RequestedObjective(headers, may_shorten)


def read_ttft_ms(headers: Mapping[str, str]) -> float | None:
    """Milliseconds to the first token, from the header; None without it. Raises BadRequest."""
    text = headers.get("x-ttft-ms")
    return None if text is None else parse_number("x-ttft-ms", text, MAX_MS)


def read_min_quality_worst(headers: Mapping[str, str]) -> float:
    """What every kind of question keeps of full at least, from the header. Raises BadRequest."""
    text = headers.get("x-min-quality-worst")
    return 0.0 if text is None else parse_number("x-min-quality-worst", text, 1.0, allow_zero=True)


def _as_text(name: str, value: Any) -> str:
    where = f"{FOVEATE}.{name}"
    if name in ("slo_ms", "ttft_ms"):
        return repr(read_number(value, where, 0, MAX_MS, above=True))
    if name in ("min_quality", "min_quality_worst"):
        return repr(read_number(value, where, 0, 1))
    if name == "priority":
        return str(read_whole(value, where, -9, 9))
    return read_text(value, where, MAX_TEXT)


def _agree(header: str, value: str) -> bool:
    try:
        return float(header) == float(value)
    except ValueError:
        return header.strip() == value.strip()


def _field_of(header: str) -> str:
    return f"{FOVEATE}.{next(name for name, other in FIELD_HEADERS.items() if other == header)}"
