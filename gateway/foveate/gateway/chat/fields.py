"""Values of a JSON body, checked one by one. Each error names the path of its field.

Objects are `JsonMembers`, as `parse_members` gives them. JSON's null is handled by the callers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foveate.core.errors import BadRequest
from foveate.core.nearest_names import did_you_mean
from foveate.gateway.body_formats.json_body import JsonMembers

SHOWN = 40
"""Longest value that an error repeats, in characters."""


def shown(value: Any) -> str:
    """A value as an error repeats it."""
    if isinstance(value, JsonMembers):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value[:SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def read_object(value: Any, where: str) -> dict[str, Any]:
    """The members of an object by name. Raises BadRequest for anything else, and for a repeated name."""
    if not isinstance(value, JsonMembers):
        raise BadRequest(f"{where} must be an object, not {shown(value)}", where)
    members: dict[str, Any] = {}
    for name, member in value:
        if name in members:
            path = f"{where}.{name[:SHOWN]}" if where else name[:SHOWN]
            raise BadRequest(f"{path} is given twice", path)
        members[name] = member
    return members


def read_closed_object(value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    """As `read_object`. Raises BadRequest for a name that is not known, too."""
    members = read_object(value, where)
    for name in members:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
            raise BadRequest(f"{where} has no field {name[:SHOWN]!r}{hint}", f"{where}.{name[:SHOWN]}")
    return members


def read_items(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The path and the value of each item of a list. Raises BadRequest for anything else."""
    if isinstance(value, JsonMembers) or not isinstance(value, list):
        raise BadRequest(f"{where} must be a list, not {shown(value)}", where)
    return ((f"{where}[{place}]", item) for place, item in enumerate(value))


def read_text(value: Any, where: str, max_characters: int | None = None) -> str:
    """Text that UTF-8 can encode. Raises BadRequest."""
    if not isinstance(value, str):
        raise BadRequest(f"{where} must be text, not {shown(value)}", where)
    if max_characters is not None and len(value) > max_characters:
        raise BadRequest(f"{where} has {len(value)} characters, and may have {max_characters}", where)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(
                f"{where} is not valid Unicode: its character {error.start + 1} is the lone surrogate "
                f"U+{ord(value[error.start]):04X}",
                where,
            ) from None
    return value


def read_choice(value: Any, where: str, choices: Sequence[str]) -> str:
    """One of a few texts. Raises BadRequest."""
    if not isinstance(value, str) or value not in choices:
        raise BadRequest(f"{where} must be {' or '.join(choices)}, not {shown(value)}", where)
    return value


def read_flag(value: Any, where: str) -> bool:
    """True or false. Raises BadRequest."""
    if not isinstance(value, bool):
        raise BadRequest(f"{where} must be true or false, not {shown(value)}", where)
    return value


def read_whole(value: Any, where: str, low: int, high: int) -> int:
    """A whole number in a range, its ends included. 5.0 is one in JSON. Raises BadRequest."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{where} must be a whole number from {low} to {high}, not {shown(value)}", where)
    return value


def read_number(value: Any, where: str, low: float, high: float, above: bool = False) -> float:
    """A number in a range, its ends included; above: `low` itself is not. Raises BadRequest."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparisons of whole numbers are exact, however long they are.
    if not is_number or not low <= value <= high or (above and value == low):
        start = f"above {low:g} to" if above else f"from {low:g} to"
        raise BadRequest(f"{where} must be a number {start} {high:g}, not {shown(value)}", where)
    return float(value)


def plain(value: Any) -> Any:
    """The value with objects as dictionaries. Raises BadRequest for a repeated name, without a path.

    Deeply nested values raise RecursionError.
    """
    if isinstance(value, JsonMembers):
        members: Mapping[str, Any] = read_object(value, "")
        return {name: plain(member) for name, member in members.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
