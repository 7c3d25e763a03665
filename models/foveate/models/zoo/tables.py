"""Typed values from the tables of TOML and JSON files."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from foveate.core.errors import SetupError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RGB = tuple[float, float, float]
"""One value per channel."""
R = TypeVar("R", bound="DataclassInstance")


def parse_record(kind: type[R], table: object, where: str) -> R:
    """A dataclass of plain fields from a table. where: for error messages.

    Raises SetupError for missing or unknown entries and for values of other types.
    """
    if not isinstance(table, Mapping):
        raise SetupError(f"{where} is missing or not a table")
    types = {f.name: f.type for f in fields(kind)}
    for key, value in table.items():
        if key not in types:
            raise SetupError(f"{where} has an unknown entry: {key}")
        if not _has_type(value, types[key]):
            raise SetupError(f"{where}: {key} cannot be {value!r}")
    try:
        return kind(**table)
    except TypeError as error:
        raise SetupError(f"{where} is incomplete: {error}") from error


def _has_type(value: object, kind: object) -> bool:
    """Whether a value has exactly this type. A whole number is a float too, a bool is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def parse_rgb(value: Any, where: str) -> RGB:
    """Three numbers. Raises SetupError for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_has_type(v, float) for v in value):
        raise SetupError(f"{where} takes three numbers, one per channel")
    red, green, blue = (float(v) for v in value)
    return red, green, blue
