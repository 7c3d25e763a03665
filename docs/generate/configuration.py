"""The configuration page: one row per field of `Settings`."""

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.generate.markdown import code, prose, table
from foveate.core.environment import RENAMED
from foveate.core.settings import Settings

_INTRO = """\
---
hide:
  - toc
---

# Configuration

After reading this page you can set every option of the server. Each row is one setting, with the environment
variable that sets it. `foveate serve` reads the settings once, when it starts. A command-line flag
(`foveate serve --help`) takes precedence over its environment variable. If a value is invalid, the server
does not start, and the error names the variable, the value and the reason. Spaces around a value do not
count. A deprecated variable works for one release. The server logs a warning for it, and for each FOVEATE_*
variable that is not a setting.

This page is generated from `Settings` in `core/foveate/core/settings.py`.

"""
_JSON = "JSON object"
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", dict: _JSON}
_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Undocumented(ValueError):
    """A setting has no attribute docstring, so the page could not say what it means."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the page; `type`, `default` and `meaning` are Markdown."""

    name: str
    variables: tuple[str, ...]
    """Environment variables that set it: the current name first, then the deprecated ones."""
    type: str
    default: str
    meaning: str


def page(settings: type[BaseModel] = Settings, renamed: Mapping[str, str] = RENAMED) -> str:
    """The whole page as Markdown. renamed: current names by deprecated name. Raises Undocumented."""
    header = ("Type", "Default", "Meaning")
    parts = [_INTRO, table(("Setting", *header), map(_row, settings_of(settings, renamed)))]
    for nested in _nested(settings):
        rows = [(code(s.name), s.type, s.default, s.meaning) for s in settings_of(nested)]
        parts.append(f"## {nested.__name__}\n\n{inspect.getdoc(nested) or ''}\n\n")
        parts.append(table(("Field", *header), rows))
    return "".join(parts)


def settings_of(model: type[BaseModel], renamed: Mapping[str, str] | None = None) -> list[Setting]:
    """The fields of a settings class, in the order of their definition.

    renamed: current names by deprecated name. Raises Undocumented.
    """
    prefix = str(model.model_config.get("env_prefix", ""))
    meanings = docstrings(model)
    fields = model.model_fields
    missing = [name for name in fields if not (meanings.get(name) or fields[name].description)]
    if missing:
        raise Undocumented(
            f"{model.__name__}: no docstring below the field{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            "add a string literal that says what the setting means"
        )
    old_names = {name: [old for old, new in (renamed or {}).items() if new == name] for name in fields}
    return [
        Setting(
            name,
            tuple(f"{prefix}{variable}".upper() for variable in (name, *old_names[name])),
            _type(field),
            _default(name, field),
            prose(meanings.get(name) or field.description or ""),
        )
        for name, field in fields.items()
    ]


def docstrings(model: type[BaseModel]) -> Mapping[str, str]:
    """The string literal below each annotated field of the class body."""
    (cls,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(cls, ast.ClassDef)  # noqa: S101
    meanings: dict[str, str] = {}
    for field, below in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = below.value if isinstance(below, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                meanings[field.target.id] = inspect.cleandoc(value.value)
    return meanings


def _row(setting: Setting) -> tuple[str, str, str, str]:
    current, *old = setting.variables
    names = f"{code(setting.name)}<br>{code(current)}"
    if old:
        names += f"<br>deprecated: {', '.join(map(code, old))}"
    return names, setting.type, setting.default, setting.meaning


def _type(field: FieldInfo) -> str:
    return " ".join(filter(None, (_type_name(field.annotation), _bounds(field))))


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(code(str(value)) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _type_name(part) for part in arguments)
    if origin in (tuple, list, set, frozenset):
        return "list, comma-separated"
    if origin is dict:
        return _JSON
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(code(str(member.value)) for member in annotation)
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(field: FieldInfo) -> str:
    limits = {
        sign: getattr(constraint, kind)
        for constraint in field.metadata
        for kind, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(constraint, kind, None) is not None
    }
    return ", ".join(f"{sign.replace('<', '&lt;')}&nbsp;{limit}" for sign, limit in limits.items())


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return "none"
    if isinstance(value, (tuple, list, set, frozenset)):
        return code(",".join(map(str, value)))
    if isinstance(value, dict):
        return code(json.dumps(value))
    shown = code(str(value))
    if name.endswith("_bytes"):
        exact = ((unit, value // size) for unit, size in _SIZES if value and value % size == 0)
        unit, count = next(exact, ("", 0))
        shown += f" ({count}&nbsp;{unit})" if unit else ""
    return shown


def _nested(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models in the types of the fields, each once."""
    nested: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            nested.setdefault(annotation)
        for argument in get_args(annotation):
            visit(argument)

    for field in model.model_fields.values():
        visit(field.annotation)
    return list(nested)
